"""The quantizers of a network: the one representation that is used from calibration to the exported file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from compress.errors import CheckpointError
from compress.files import write_json
from compress.parse import Positive, read

FORMAT: Final = 2
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
    scale: Positive
    zero_point: int
    low: int
    high: int

    def __post_init__(self) -> None:
        if not -128 <= self.low <= self.zero_point <= self.high <= 255 or self.high - self.low > 255:
            raise ValueError(f"zero point {self.zero_point} of {self.low}..{self.high} is not of 8 bits")

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
    scale: tuple[Positive, ...]
    pairs_fit: bool = False


@dataclass(frozen=True)
class Quantizers:
    """All quantizers of a network, as they were placed for one target."""

    target: str
    activations: tuple[Activation, ...]
    weights: tuple[Weight, ...]

    def save(self, path: Path) -> None:
        """Write JSON; Python's shortest float form brings back the same bits."""
        write_json(path, asdict(QuantizersFile(FORMAT, self.target, self.activations, self.weights)))

    @classmethod
    def load(cls, path: Path) -> Quantizers:
        """Read what ``save`` wrote.

        Raises:
            CheckpointError: it is damaged, or of another format.
        """
        record = read(path, QuantizersFile, remedy="run the quantize stage again", error=CheckpointError)
        return cls(record.target, record.activations, record.weights)


@dataclass(frozen=True)
class QuantizersFile:
    """What ``quantizers.json`` holds."""

    format: Literal[2]
    target: str
    activations: tuple[Activation, ...]
    weights: tuple[Weight, ...]
