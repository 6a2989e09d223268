"""The files that ``deploy`` copies into the folder for a device; they import nothing of this package."""
