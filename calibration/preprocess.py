"""The preprocessing that a network expects; it is stored with the model, in the ONNX file and in the benchmark."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Interpolation = Literal["nearest", "bilinear", "bicubic"]
ChannelOrder = Literal["rgb", "bgr"]
Sides = int | tuple[int, int]
"""A square's side, or (height, width); pixels."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LARGEST = 8192  # pixels a side
LEAST_STD = 1e-6  # of pixels in 0..1; a 16-bit image has steps of 1.5e-5
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name for an image with this many channels."""


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop the centre, scale to 0..1, normalise per channel: as torchvision's weights are evaluated.

    Attributes:
        size: network input, which is the size of the centre crop: pixels a side, or (height, width).
        resize: before the crop: the shorter side in pixels, or (height, width) exactly; 0 leaves the image as it is.
        mean, std: per channel, in the order of ``channel_order``, of pixel values in 0..1.
        channels: 3 for colours, 1 for grey, 4 for colours and alpha.
        interpolation: how the image is resized.
        antialias: a smaller image is averaged over the pixels that it replaces, as Pillow does.
        channel_order: of the colours in the network's input.

    Raises:
        ValueError: a value that no image set can have.

    >>> Preprocess(size=224, resize=256).shape, Preprocess(size=(32, 64)).shape
    ((3, 224, 224), (3, 32, 64))
    """

    size: Sides
    resize: Sides = 0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: int = 3
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    channel_order: ChannelOrder = "rgb"

    def __post_init__(self) -> None:
        resized = () if self.resize == 0 else both(self.resize)
        if not all(1 <= side <= LARGEST for side in (*self.sides, *resized)):
            raise ValueError(f"size {self.size} and resize {self.resize} must be at most {LARGEST} pixels")
        if self.channels not in MODES:
            raise ValueError(f"{self.channels} channels: an image has 3 (RGB), 1 (grey) or 4 (RGBA)")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values, the input has {self.channels} channels")
            if fault := fault_of(name, values):
                raise ValueError(fault)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the input."""
        return both(self.size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one input (channels, height, width)."""
        return (self.channels, *self.sides)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def both(sides: Sides) -> tuple[int, int]:
    """Height and width.

    >>> both(224), both((32, 64))
    ((224, 224), (32, 64))
    """
    return sides if isinstance(sides, tuple) else (sides, sides)


def fault_of(name: str, values: tuple[float, ...]) -> str:
    """Say why a mean or a standard deviation of pixels in 0..1 is impossible; empty if it is possible.

    >>> fault_of("mean", (0.485,)), fault_of("mean", (123.675,))
    ('', 'mean [123.675] must be in 0..1: pixels are scaled to 0..1 first, so divide values of 0..255 by 255')
    """
    shown = f"{name} {list(values)}"
    if not all(math.isfinite(value) for value in values):
        return f"{shown} must be finite"
    if name == "mean" and not all(0 <= value <= 1 for value in values):
        return f"{shown} must be in 0..1: pixels are scaled to 0..1 first, so divide values of 0..255 by 255"
    if name == "std" and not all(LEAST_STD <= value <= 1e3 for value in values):
        return f"{shown} must be above {LEAST_STD:g}, and at most 1000"
    return ""
