"""The preprocessing that a network expects; it is stored with the model, in the ONNX file and in the benchmark."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LARGEST = 8192  # pixels a side
LEAST_STD = 1e-6  # of pixels in 0..1; a 16-bit image has steps of 1.5e-5


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side, crop the centre, scale to 0..1, normalise per channel.

    Attributes:
        size: network input, pixels a side.
        resize: shorter side before the crop, pixels; 0 leaves the image as it is.
        mean, std: per channel, of pixel values in 0..1.
        channels: 3 for RGB, 1 for grey.

    Raises:
        ValueError: a value that no image set can have.

    >>> Preprocess(size=224, resize=256).shape
    (3, 224, 224)
    """

    size: int
    resize: int = 0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.size <= LARGEST or not 0 <= self.resize <= LARGEST:
            raise ValueError(f"size {self.size} and resize {self.resize} must be at most {LARGEST} pixels")
        if self.channels not in (1, 3):
            raise ValueError(f"{self.channels} channels: an image has 3 (RGB) or 1 (grey)")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values, the input has {self.channels} channels")
            if fault := fault_of(name, values):
                raise ValueError(fault)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one input (channels, height, width)."""
        return (self.channels, self.size, self.size)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


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
