"""Find out whether a network gets the images and the classes that it was trained for."""
