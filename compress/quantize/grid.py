"""The integers of a tensor, with the range and zero point that the target's engine uses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.quantize.quantizer import TINY
from compress.targets import Profile


@dataclass(frozen=True)
class Grid:
    """Which real values the integers of a range mean: x ~ scale * (q - zero_point).

    Attributes:
        least, most: the smallest and the largest integer.
        symmetric: the zero point is 0, in the middle of the integers.

    >>> Grid(0, 255, symmetric=False).fit(-1.0, 1.55)
    (0.009999999776482582, 100)
    >>> Grid(-128, 127, symmetric=True).fit(0.0, 1.27)
    (0.009999999776482582, 0)
    """

    least: int
    most: int
    symmetric: bool

    @classmethod
    def of(cls, rule: Profile) -> Grid:
        """Of a target's activations."""
        least = 0 if rule.activations == "uint8" else -128
        return cls(least, least + 255, rule.symmetric)

    @property
    def levels(self) -> int:
        return self.most - self.least + 1

    def fit(self, low: float, high: float) -> tuple[float, int]:
        """Scale and zero point for the values from ``low`` to ``high``; 0 is one of the values exactly.

        Jacob et al. 2018, arXiv:1712.05877, equation 1.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        if self.symmetric:
            return float32(max(-low, high) / self.most), 0
        scale = float32((high - low) / (self.most - self.least))
        return scale, self.least + min(self.most - self.least, round(-low / scale))

    def codes(self, values: Tensor, low: float, high: float) -> Tensor:
        """The integers nearest to ``values``, not yet clamped to ``least`` and ``most``."""
        scale, zero_point = self.fit(low, high)
        return (values / scale).round_().add_(zero_point)

    def rounded(self, values: Tensor, low: float, high: float) -> Tensor:
        """``values`` rounded to the grid and clipped to its range."""
        scale, zero_point = self.fit(low, high)
        return self.codes(values, low, high).clamp_(self.least, self.most).sub_(zero_point).mul_(scale)


def float32(value: float) -> float:
    """The nearest float32, as engines hold scales; a tensor that is always 0 still has a scale above 0."""
    return float(torch.tensor(max(value, TINY), dtype=torch.float32))
