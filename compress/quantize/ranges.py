"""From what was seen of a tensor to the range that its integers represent.

A wide range rounds coarsely, a narrow one clips; each method weighs the two in its own way, on the integers that ship.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from compress.quantize.grid import Grid
from compress.quantize.histogram import BINS, Histogram

Method = Callable[[Histogram, Grid], tuple[float, float]]
"""From the values of a tensor, and the integers that ship, to the range (low, high) that the integers represent."""

_TAIL = 1e-5  # left out at each end by ``percentile``: 99.999%, as ONNX Runtime's calibrator does
_STEPS = 33  # narrower ranges that ``mse`` and ``entropy`` try: 20% to 100% of the widest
_NARROWEST = 0.2


def minmax(seen: Histogram, grid: Grid) -> tuple[float, float]:
    """The extremes: nothing is clipped."""
    return seen.low, seen.high


def percentile(seen: Histogram, grid: Grid) -> tuple[float, float]:
    """The range that leaves out 0.001% of the values at each end."""
    share = seen.counts.cumsum(0).double() / seen.counts.sum()
    first, last = int((share <= _TAIL).sum()), int((share < 1 - _TAIL).sum())
    edge = (torch.tensor([first, last + 1], dtype=torch.float64) - BINS // 2) * seen.width
    return max(float(edge[0]), seen.low), min(float(edge[1]), seen.high)


def mse(seen: Histogram, grid: Grid) -> tuple[float, float]:
    """The range with the least mean squared error of rounding and clipping (Sung et al. 2015, arXiv:1511.06488)."""
    values, counts = _occupied(seen)

    def error(low: float, high: float) -> float:
        return float((grid.rounded(values, low, high).sub_(values).square_() * counts).sum())

    return _best(seen, grid, error)


def entropy(seen: Histogram, grid: Grid) -> tuple[float, float]:
    """The range whose integers keep the distribution best: least Kullback-Leibler divergence.

    Migacz 2017, "8-bit inference with TensorRT" (GTC): values outside count at the ends of the true distribution and
    not at all in the rounded one, in which each integer spreads its count evenly over the bins that it stands for.
    """
    values, counts = _occupied(seen)

    def lost(low: float, high: float) -> float:
        codes = grid.codes(values, low, high)
        inside = (codes >= grid.least) & (codes <= grid.most)
        if not inside.any():
            return float("inf")
        true = counts[inside].clone()
        true[0] += counts[codes < grid.least].sum()
        true[-1] += counts[codes > grid.most].sum()
        level = (codes[inside] - grid.least).to(torch.int64)
        total = torch.zeros(grid.levels, dtype=torch.float64).index_add_(0, level, counts[inside])
        bins = torch.bincount(level, minlength=grid.levels)
        rounded = (total / bins.clamp(min=1))[level]
        p, q = true / true.sum(), rounded / rounded.sum()
        return float((p * (p / q).log()).sum())

    return _best(seen, grid, lost)


def _occupied(seen: Histogram) -> tuple[Tensor, Tensor]:
    """Values and counts of the bins that are not empty, float64."""
    used = seen.counts > 0
    return seen.centers()[used], seen.counts[used].double()


def _best(seen: Histogram, grid: Grid, cost: Callable[[float, float], float]) -> tuple[float, float]:
    """The range of least cost, around 0 and within the extremes."""
    least, most = min(seen.low, 0.0), max(seen.high, 0.0)
    if least == most:
        return least, most
    shares = torch.linspace(1.0, _NARROWEST, _STEPS, dtype=torch.float64).tolist()
    if grid.symmetric:
        widest = max(-least, most)
        low, high = min(((-share * widest, share * widest) for share in shares), key=lambda r: cost(*r))
        return max(low, least), min(high, most)
    return min(_pairs(least, most, shares), key=lambda r: cost(*r))


def _pairs(least: float, most: float, shares: Iterable[float]) -> list[tuple[float, float]]:
    """Ranges with either end narrowed; an end at 0 stays there."""
    shares = list(shares)
    lows = [share * least for share in shares] if least < 0 else [0.0]
    highs = [share * most for share in shares] if most > 0 else [0.0]
    return [(low, high) for low in lows for high in highs]
