"""Measure the accuracy of engines: images, predictions, and paired comparisons."""

DATA_HELP = "digits, cifar10:FOLDER, or a folder of images (class folders, or images with a labels.csv)"
