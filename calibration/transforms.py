"""Turn a decoded image into a network's input, and augment training images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from calibration.errors import DataError
from calibration.preprocess import LARGEST, MODES, Preprocess, Sides, both

Transform = Callable[[Image.Image], Tensor]
Augment = Literal["none", "randaugment", "trivialaugment"]
_AUGMENT: dict[str, type[torch.nn.Module]] = {
    "randaugment": v2.RandAugment,
    "trivialaugment": v2.TrivialAugmentWide,
}


def eval_transform(p: Preprocess) -> Transform:
    """Image -> (C, H, W) float32: resized, centre crop, 0..1, normalised; see ``Preprocess``.

    Grey and colour images are converted to the channels of the network; alpha is dropped where it takes none, so that
    a transparent pixel has the colour that is stored for it. The transform raises DataError for an image that is
    smaller than the crop.

    >>> eval_transform(Preprocess(size=32))(Image.new("RGB", (40, 32))).shape
    torch.Size([3, 32, 32])
    """
    return _chain([*_resize(p), _Large(p.sides), v2.CenterCrop(p.sides), *_tensor(p)])


def train_transform(
    p: Preprocess,
    *,
    crop: float,
    flip: bool,
    jitter: float,
    resized_crop: float = 0.0,
    augment: Augment = "none",
    erasing: float = 0.0,
) -> Transform:
    """Like ``eval_transform``, with random changes (PyTorch's global generator), by torchvision's transforms.

    Args:
        crop: largest shift of the crop from the centre, as a share of ``size``; outside the image it is black.
        flip: mirror half of the images, at random.
        jitter: change brightness, contrast and saturation by factors from 1 - jitter to 1 + jitter.
        resized_crop: above 0, in place of the shifted crop: a crop of random size and shape, which is resized; this is
            the least share of the image's area that it takes (Szegedy et al. 2015, arXiv:1409.4842, section 6).
        augment: change colours and shapes by RandAugment (Cubuk et al. 2019, arXiv:1909.13719; two operations of
            strength 9) or TrivialAugment (Mueller and Hutter 2021, arXiv:2103.10158; one of any strength).
        erasing: share of the images in which a rectangle gets the mean colour (Zhong et al. 2017, arXiv:1708.04896).

    Raises:
        DataError: ``augment`` with an alpha channel.
    """
    steps: list[torch.nn.Module] = []
    if resized_crop > 0:
        steps += [_Mode(p.channels), v2.RandomResizedCrop(p.sides, scale=(resized_crop, 1.0), **_how(p))]
    else:
        wide = [side + 2 * round(crop * side) for side in p.sides]
        steps += [*_resize(p), _Large(p.sides), v2.CenterCrop(wide), v2.RandomCrop(p.sides)]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if jitter > 0:
        steps.append(v2.ColorJitter(jitter, jitter, jitter))
    if augment != "none":
        if p.channels not in (1, 3):
            raise DataError(
                f"augment='{augment}' changes colours, and the network's input has {p.channels} channels with alpha",
                remedy="set augment='none'",
            )
        mode = v2.InterpolationMode.NEAREST if p.interpolation == "nearest" else v2.InterpolationMode.BILINEAR
        steps.append(_AUGMENT[augment](interpolation=mode))
    return _chain([*steps, *_tensor(p), *([v2.RandomErasing(erasing)] if erasing > 0 else [])])


def at_size(p: Preprocess, size: Sides | None) -> Preprocess:
    """The same preprocessing for another input size: what is resized before the crop is resized in proportion.

    Images that are not resized are taken to have the old size: their shorter side becomes the new one.

    >>> at_size(Preprocess(224, resize=256), 112).resize
    128
    """
    if size is None or both(size) == p.sides:
        return p
    new = replace(p, size=size, resize=0)
    if not p.resize:
        return replace(new, resize=max(new.sides))
    factors = [to / of for to, of in zip(new.sides, p.sides, strict=True)]
    if isinstance(p.resize, int):
        return replace(new, resize=_at_least(max(new.sides), p.resize * max(factors)))
    height, width = (_at_least(to, side * f) for to, side, f in zip(new.sides, p.resize, factors, strict=True))
    return replace(new, resize=(height, width))


def _at_least(crop: int, side: float) -> int:
    return max(crop, min(LARGEST, round(side)))


def _chain(steps: list[torch.nn.Module]) -> Transform:
    chain: Transform = v2.Compose(steps)
    return chain


def _resize(p: Preprocess) -> list[torch.nn.Module]:
    """The channels that are resized, and the resize."""
    if not p.resize:
        return [_Mode(p.channels)]
    size = p.resize if isinstance(p.resize, int) else list(p.resize)
    tensor = [] if p.antialias else [v2.ToImage()]  # Pillow always antialiases
    return [_Mode(p.channels), *tensor, v2.Resize(size, **_how(p))]


def _how(p: Preprocess) -> dict[str, Any]:
    return {"interpolation": v2.InterpolationMode(p.interpolation), "antialias": p.antialias}


def _tensor(p: Preprocess) -> list[torch.nn.Module]:
    grey = [v2.Grayscale()] if p.channels == 1 else []
    swap = [_Swap()] if p.channel_order == "bgr" and p.channels > 1 else []
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return [*grey, *to_float, *swap, v2.Normalize(list(p.mean), list(p.std))]


class _Mode(torch.nn.Module):
    """Add or drop alpha before an image is resized: Pillow weighs the colours of an image with alpha by it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mode = MODES[4 if channels == 4 else 3]

    def forward(self, image: Image.Image) -> Image.Image:
        return image if image.mode == self.mode else image.convert(self.mode)


class _Swap(torch.nn.Module):
    """RGB -> BGR, of a tensor (C, H, W); alpha stays last."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:3].flip(0), x[3:]])


class _Large(torch.nn.Module):
    """Refuse an image that is too small to crop: torchvision's crop would silently pad it with black."""

    def __init__(self, sides: tuple[int, int]) -> None:
        super().__init__()
        self.sides = sides

    def forward(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        height, width = v2.functional.get_size(image)
        if height < self.sides[0] or width < self.sides[1]:
            wanted = self.sides[0] if self.sides[0] == self.sides[1] else list(self.sides)
            shown = wanted if isinstance(wanted, int) else f"{wanted[1]}x{wanted[0]}"
            raise DataError(
                f"an image of {width}x{height} is smaller than the network's input of {shown}",
                remedy=f"set data.resize={wanted} to enlarge the images, or set a smaller data.input_size",
            )
        return image
