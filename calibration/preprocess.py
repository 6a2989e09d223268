"""What a network expects of its input: travels with the model, into the ONNX file and the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side, crop the centre, scale to 0..1, normalise per channel.

    Attributes:
        size: network input, pixels a side.
        resize: shorter side before the crop, pixels; 0 leaves the image as it is.
        mean, std: per channel, of pixel values in 0..1.
        channels: 3 for RGB, 1 for grey.

    >>> Preprocess(size=224, resize=256).shape
    (3, 224, 224)
    """

    size: int
    resize: int = 0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: int = 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one input (channels, height, width)."""
        return (self.channels, self.size, self.size)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Preprocess:
        return cls(**{**value, "mean": tuple(value["mean"]), "std": tuple(value["std"])})
