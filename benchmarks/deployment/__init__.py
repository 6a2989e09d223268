"""What ``predict`` and ``deploy`` do: answers to single images, and the folder that gives the same ones on a device."""
