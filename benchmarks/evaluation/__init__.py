"""How right engines are: images, predictions, and what these come to."""

DATA_HELP = "digits, cifar10:FOLDER, or a folder of images (class folders, or images with a labels.csv)"
