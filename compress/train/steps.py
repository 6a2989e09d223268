"""What is done to a batch before the forward pass, beyond what is done to each image: ``train.steps`` names them.

A step takes images (N, C, H, W) and targets (N, classes), the share of each class in an image, and returns both. Random
numbers come from torch's global generator, which the loop seeds, so that a training can be repeated and resumed.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torchvision.transforms import v2

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def mixup(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Average each image with another one (Zhang et al. 2018, arXiv:1710.09412; alpha = 0.2)."""
    mixed: tuple[Tensor, Tensor] = v2.MixUp(alpha=0.2)(images, targets)
    return mixed


def cutmix(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of another image into each (Yun et al. 2019, arXiv:1905.04899; alpha = 1)."""
    mixed: tuple[Tensor, Tensor] = v2.CutMix(alpha=1.0)(images, targets)
    return mixed
