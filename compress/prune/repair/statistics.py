"""First and second moments of a layer's inputs, and the weights that follow from them in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.errors import ModelError
from compress.graph.patches import inputs_at, unit_of, values_at

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Weights of the old weights against the new ones' fit, as shares of the mean variance of an input."""

_ROWS = 256  # of a matrix that are in float64 at once
_CONSTANT = 4 * torch.finfo(torch.float32).eps  # relative to its mean, an input that varies no more than that does not


@dataclass(frozen=True)
class Statistics:
    """Moments of the inputs x and the targets y of a layer, in float64; second moments are central.

    Attributes:
        count: positions they were taken over.
        mean, target_mean: (inputs,), (outputs,).
        covariance, cross: (inputs, inputs), and of inputs with targets (inputs, outputs).
    """

    count: int
    mean: Tensor
    target_mean: Tensor
    covariance: Tensor
    cross: Tensor

    def __add__(self, other: Statistics) -> Statistics:
        """Of both samples together."""
        count = self.count + other.count
        mine, its = self.count / count, other.count / count
        x, y = self.mean - other.mean, self.target_mean - other.target_mean
        return Statistics(
            count,
            mine * self.mean + its * other.mean,
            mine * self.target_mean + its * other.target_mean,
            (mine * self.covariance).add_(other.covariance, alpha=its).addr_(x, x, alpha=mine * its),
            (mine * self.cross).add_(other.cross, alpha=its).addr_(x, y, alpha=mine * its),
        )

    def uncentred(self) -> Statistics:
        """For a fit without a constant: second moments about zero."""
        covariance = torch.addr(self.covariance, self.mean, self.mean)
        cross = torch.addr(self.cross, self.mean, self.target_mean)
        zero, none = torch.zeros_like(self.mean), torch.zeros_like(self.target_mean)
        return Statistics(self.count, zero, none, covariance, cross)

    def error(self, a: Tensor) -> float:
        """E|a'x + b - y|^2 with the best b, but for a constant that does not depend on a."""
        return float((a * (self.covariance @ a - 2 * self.cross)).sum())


class Moments:
    """Sums over sampled positions of x (inputs of one output position) and of a target y of a layer.

    Arithmetic is float32 within a batch and float64 between batches.

    Attributes:
        count: positions seen.
        unit: what the sums are in, a power of two: squares of small inputs would be zeros.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Take in x (rows, inputs) and y (rows, outputs)."""
        if self.count == 0:
            self.unit = unit_of(x)
            self._shift = x.mean(0)  # centred early, so that float32 products do not cancel later
            self._xx = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float32)
            self._x = torch.zeros(x.shape[1], dtype=torch.float64)
            if y is not None:
                self._shift_y = y.mean(0)
                self._xy = x.new_zeros(x.shape[1], y.shape[1])
                self._y = torch.zeros(y.shape[1], dtype=torch.float64)
        x = (x - self._shift).div_(self.unit)
        self._xx.addmm_(x.T, x)
        self._x += x.sum(0)
        if y is not None:
            y = y - self._shift_y
            self._xy.addmm_(x.T, y)
            self._y += y.sum(0)
        self.count += len(x)

    @property
    def mean(self) -> Tensor:
        """(inputs,)"""
        return self._shift.double() + self._x / self.count * self.unit

    def second(self, *, about_zero: bool) -> Tensor:
        """(inputs, inputs) second moments in squares of ``unit``, float32: about zero, or about the mean."""
        mean = self.mean / self.unit if about_zero else None
        return self._covariance(torch.arange(len(self._x)), torch.float32, mean)

    def statistics(self, chosen: Tensor | None = None) -> Statistics:
        """All of them; targets were given.

        Args:
            chosen: (inputs,), a mask of the inputs that count; default: all do.
        """
        rows = torch.arange(len(self._x)) if chosen is None else chosen.nonzero().flatten()
        covariance = self._covariance(rows, torch.float64).mul_(self.unit**2)
        cross = (self._xy[rows].double() / self.count).addr_(self._x[rows], self._y, alpha=-1 / self.count**2)
        target_mean = self._shift_y.double() + self._y / self.count
        return Statistics(self.count, self.mean[rows], target_mean, covariance, cross.mul_(self.unit))

    def _covariance(self, rows: Tensor, dtype: torch.dtype, mean: Tensor | None = None) -> Tensor:
        """Of some inputs, in squares of ``unit``; with their mean (inputs,), about zero."""
        found = torch.empty(len(rows), len(rows), dtype=dtype)
        offset = self._x / self.count
        variance = self._xx.diagonal().double() / self.count - offset.square()
        varies = variance > (_CONSTANT * self.mean / self.unit).square()
        for start in range(0, len(rows), _ROWS):
            at = rows[start : start + _ROWS]
            block = (self._xx[at][:, rows].double() / self.count).addr_(offset[at], offset[rows], alpha=-1)
            block.mul_(varies[rows]).mul_(varies[at, None])
            found[start : start + _ROWS] = block if mean is None else block.addr_(mean[at], mean[rows])
        return found


@contextmanager
def naming(layer: str, way_out: str = "") -> Iterator[None]:
    """Wrap the solving of a layer's weights: a failure becomes a ModelError that names the layer.

    Args:
        way_out: a further remedy, appended to the message.

    Raises:
        ModelError: a factorization or a solution failed or is not finite, because of infinite values or of values so
            far apart that their squares drown one another.
    """
    try:
        yield
    except (torch.linalg.LinAlgError, FloatingPointError) as error:  # type: ignore[attr-defined]
        raise ModelError(
            f"the inputs of '{layer}' are too large, or too far apart, to solve for its weights: {error}",
            remedy="evaluate the float network: it may have diverged, or its input may not be normalised as it was"
            + way_out,
        ) from error


def solve(seen: Statistics, old: Tensor, ridge: float) -> Tensor:
    """Weights that fit the target from inputs with the given moments, drawn towards the old ones.

    argmin_A E|A' x - y|^2 + lambda |A - old|^2 = (C + lambda I)^-1 (cross + lambda old), lambda = ridge * mean(diag C)
    (ridge regression with a prior mean; Hoerl & Kennard 1970).

    Args:
        old: (inputs, outputs).
    """
    mean = float(seen.covariance.diagonal().mean())
    strength = ridge * (mean if mean > 0 else 1.0)  # of inputs that are constant: the old weights
    damped = seen.covariance.clone()
    damped.diagonal().add_(strength)
    factor = torch.linalg.cholesky(damped)
    del damped
    return torch.cholesky_solve(seen.cross + strength * old, factor)


def best_ridge(fit: Statistics, held_out: Statistics, old: Tensor) -> float:
    """Which of ``RIDGES`` gives the weights that do best on positions that they were not solved on.

    Few images for many inputs need a strong pull towards the old weights; many images hardly any.
    """
    return min(RIDGES, key=lambda ridge: held_out.error(solve(fit, old, ridge)))


class Sampler:
    """Which output positions of a layer are looked at: the same in every tensor of that size, seeded.

    Args:
        rows: positions wanted over all images together.
        images: how many images there will be.
    """

    def __init__(self, rows: int, images: int, seed: int = 0) -> None:
        self._per_image = max(1, -(-rows // images))
        self._seed = seed

    def inputs(self, layer: nn.Module, x: Tensor, output: Tensor, batch: int) -> Tensor:
        """What ``layer`` reads from x for sampled positions of its output: (rows, inputs).

        Args:
            batch: number of the batch that x is.
        """
        return x.clone() if output.dim() == 2 else inputs_at(layer, x, self._positions(output, batch), output.shape[-1])

    def values(self, value: Tensor, batch: int) -> Tensor:
        """A tensor (N, C, H, W) at those positions, (rows, C); (N, C) as it is."""
        return value.clone() if value.dim() == 2 else values_at(value, self._positions(value, batch))

    def _positions(self, output: Tensor, batch: int) -> Tensor:
        """(N, P) flat positions in the maps of ``output``."""
        count, size = len(output), output.shape[-2] * output.shape[-1]
        if size <= self._per_image:
            return torch.arange(size).expand(count, size)
        generator = torch.Generator().manual_seed(self._seed + 1_000_003 * batch + size)
        return torch.rand(count, size, generator=generator).argsort(1)[:, : self._per_image]
