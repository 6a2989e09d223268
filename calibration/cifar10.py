"""CIFAR-10 through torchvision (Krizhevsky 2009); it is downloaded only if the configuration asks for it."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import CIFAR10

from calibration.errors import DataError
from calibration.split import ArraySource, Split


def cifar10(root: Path, *, train: bool, download: bool) -> Split:
    """50,000 training or 10,000 test images, 32x32 RGB, from ``root/cifar-10-batches-py``.

    Raises:
        DataError: the files are absent or damaged, or the download failed.
    """
    name = "train" if train else "eval"
    try:
        dataset = CIFAR10(str(root), train=train, download=download)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"no intact CIFAR-10 in {root}: {str(error).splitlines()[0]}",
            remedy="set data.download=true to let torchvision download it, or set data.train and data.eval to folders "
            "with one subfolder of images per class",
        ) from None
    return ArraySource(f"cifar10 {name}", dataset.data).split(name, dataset.classes, dataset.targets)
