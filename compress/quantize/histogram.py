"""What calibration remembers of a tensor: its extremes and how often each value occurs, whatever the sample's size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BINS = 4096
_SAMPLED = 18  # 2**18 values of each batch are counted; the extremes are of all


class Histogram:
    """A histogram over bins of equal width around 0, widened as values arrive.

    The width is a power of two and grows by merging neighbours, so counts are exact integers and do not depend on the
    order of the batches once the range is the same.

    Attributes:
        low, high: extremes of all values seen.
        width: of a bin.
        counts: (BINS,) int64; bin i holds values in [(i - BINS / 2) * width, (i + 1 - BINS / 2) * width).

    >>> seen = Histogram()
    >>> seen.add(torch.tensor([0.0, 1.0, -3.0]))
    >>> seen.low, seen.high, int(seen.counts.sum())
    (-3.0, 1.0, 3)
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.width = 0.0
        self.counts = torch.zeros(BINS, dtype=torch.int64)

    def add(self, values: Tensor) -> None:
        """Count the values of a tensor of any shape; of a large one, evenly spaced ones.

        NaN and infinite values are noted in ``low`` and ``high`` and not counted.
        """
        values = values.detach()
        flat = (values.movedim(1, -1) if values.dim() == 4 else values).reshape(-1)  # no copy if channels are last
        least, most = (float(end) for end in flat.aminmax())
        self.low, self.high = min(self.low, least), max(self.high, most)
        if not (math.isfinite(least) and math.isfinite(most)):
            self.low, self.high = -math.inf, math.inf
            return
        self._widen(max(-least, most))
        step = (len(flat) >> _SAMPLED) | 1  # odd: images have even sides, a step of 16 would see the same columns
        index = (flat[::step] / self.width).floor_().to(torch.int64) + BINS // 2
        self.counts += torch.bincount(index.clamp_(0, BINS - 1), minlength=BINS)

    def centers(self) -> Tensor:
        """(BINS,) float64: the value that stands for each bin."""
        return (torch.arange(BINS, dtype=torch.float64) - BINS // 2 + 0.5) * self.width

    def _widen(self, magnitude: float) -> None:
        if self.width == 0.0:
            self.width = 2.0 ** math.ceil(math.log2(max(magnitude, 2.0**-100) / (BINS // 2)))
        while magnitude > self.width * (BINS // 2):
            quarter = torch.zeros(BINS // 4, dtype=torch.int64)
            self.counts = torch.cat([quarter, self.counts.reshape(-1, 2).sum(1), quarter])
            self.width *= 2
