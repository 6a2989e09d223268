"""Training steps: changes to a whole batch before the forward pass. ``train.steps`` names them, in their order.

A step takes images (N, C, H, W) and targets (N, classes), the share of each class in an image, and returns both. It
draws random numbers from torch's global generator, which the training loop seeds, so that a training can be repeated
and resumed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
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


def mixup_or_cutmix(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """One of the two for each batch, at random, as torchvision's recipe has it."""
    chosen = (mixup, cutmix)[int(torch.randint(2, ()))]
    return chosen(images, targets)
