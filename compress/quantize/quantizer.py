"""The values that say what is INT8 in a network: our one form of it, from calibration to the exported file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compress.errors import CheckpointError
from compress.run import read_json, write_json

FORMAT = 2
WEIGHT_HIGH = 127  # symmetric: -128 is not used, so that -w is as exact as w
TINY = 2.0**-100  # the least scale, of what is always 0


@dataclass(frozen=True)
class Activation:
    """One scale for a tensor that flows from one graph node to another: x ~ scale * (q - zero_point).

    Attributes:
        source: name of the node that makes the tensor.
        user: name of the one node that sees it quantized; None for all of them.
        low, high: smallest and largest q, the range of uint8 or int8.

    >>> Activation("relu", None, scale=0.5, zero_point=128, low=0, high=255).range
    (-64.0, 63.5)
    """

    source: str
    user: str | None
    scale: float
    zero_point: int
    low: int
    high: int

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest real value that it can say."""
        return self.scale * (self.low - self.zero_point), self.scale * (self.high - self.zero_point)


@dataclass(frozen=True)
class Weight:
    """A scale for each output channel of one layer, symmetric int8 in -127..127: w[k] ~ scale[k] * q[k].

    Attributes:
        pairs_fit: neighbouring integers are chosen so that the sum of their products fits into int16; see ``pairs``.
    """

    layer: str
    scale: tuple[float, ...]
    pairs_fit: bool = False


@dataclass(frozen=True)
class Quantizers:
    """All quantizers of a network, as they were placed for one target."""

    target: str
    activations: tuple[Activation, ...]
    weights: tuple[Weight, ...]

    def save(self, path: Path) -> None:
        """Write JSON; Python's shortest float form brings back the same bits."""
        write_json(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> Quantizers:
        """Read what ``save`` wrote.

        Raises:
            CheckpointError: another format.
        """
        record: Mapping[str, Any] = read_json(path)
        try:
            if record["format"] != FORMAT:
                raise ValueError(f"format {record['format']}, this version reads {FORMAT}")
            activations = tuple(Activation(**value) for value in record["activations"])
            weights = tuple(
                Weight(value["layer"], tuple(value["scale"]), value["pairs_fit"]) for value in record["weights"]
            )
            return cls(record["target"], activations, weights)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"cannot read {path}: {error}", remedy="run the quantize stage again") from None
