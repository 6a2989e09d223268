"""Turn a decoded image into a network's input, and augment training images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from calibration.errors import DataError
from calibration.preprocess import Preprocess

Transform = Callable[[Image.Image], Tensor]


def eval_transform(p: Preprocess) -> Transform:
    """Image -> (C, size, size) float32: shorter side to ``resize``, centre crop, 0..1, normalised.

    The transform raises DataError for an image that is smaller than the crop.

    >>> eval_transform(Preprocess(size=32))(Image.new("RGB", (40, 32))).shape
    torch.Size([3, 32, 32])
    """
    return _chain([*_resize(p), _Large(p.size), v2.CenterCrop(p.size), *_tensor(p)])


def train_transform(p: Preprocess, *, crop: float, flip: bool, jitter: float) -> Transform:
    """Like ``eval_transform``, with a randomly shifted crop, flip and colours (PyTorch's global generator).

    Args:
        crop: largest shift of the crop from the centre, as a share of ``size``; outside the image it is black.
        flip: mirror half of the images, at random.
        jitter: change brightness, contrast and saturation by factors from 1 - jitter to 1 + jitter.
    """
    margin = round(crop * p.size)
    steps: list[torch.nn.Module] = [*_resize(p), _Large(p.size)]
    steps += [v2.CenterCrop(p.size + 2 * margin), v2.RandomCrop(p.size)]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if jitter > 0:
        steps.append(v2.ColorJitter(jitter, jitter, jitter))
    return _chain([*steps, *_tensor(p)])


def _chain(steps: list[torch.nn.Module]) -> Transform:
    chain: Transform = v2.Compose(steps)
    return chain


def _resize(p: Preprocess) -> list[torch.nn.Module]:
    return [v2.Resize(p.resize)] if p.resize else []


def _tensor(p: Preprocess) -> list[torch.nn.Module]:
    grey = [v2.Grayscale()] if p.channels == 1 else []
    return [*grey, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(p.mean), list(p.std))]


class _Large(torch.nn.Module):
    """Refuse an image that is too small to crop: torchvision's crop would silently pad it with black."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: Image.Image) -> Image.Image:
        if min(image.size) < self.size:
            raise DataError(
                f"an image of {image.width}x{image.height} is smaller than the network's input of {self.size}",
                remedy=f"set data.resize={self.size} to enlarge the images, or set a smaller data.input_size",
            )
        return image
