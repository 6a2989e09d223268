"""Optimal Brain Surgeon on structures: choose the channels to remove, given that the remaining weights are repaired.

A reader with weights A (inputs x outputs) and input covariance C loses E|A'x - y|^2 when the rows r of a channel go
and the remaining rows are re-solved; with H = C^-1 that is (Hassibi & Stork 1993; for structures Kurtic et al. 2023,
arXiv:2302.04089, equation 3)

    s = tr(F A_r' (H_rr)^-1 A_r),     A <- A - H_:r (H_rr)^-1 A_r,     H <- H - H_:r (H_rr)^-1 H_r:,

with F the weight of each output. A channel that several layers read has the sum of their scores.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.prune.importance.scores import Scored

RIDGE = 1e-3
"""What is added to the diagonal of a second moment, as a share of its mean."""


_STEPS = 32


@dataclass(frozen=True)
class Reader:
    """A layer that reads the channels to choose from.

    Attributes:
        weights: (inputs, outputs).
        covariance: (inputs, inputs), in any unit.
        importance: (outputs,), what a squared error of each output costs, in that unit.
        rows: (units, rows a unit): the inputs that go with each unit.
    """

    weights: Tensor
    covariance: Tensor
    importance: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Path:
    """Units removed one after the other.

    Attributes:
        order: all units, the one that stays longest first: the best w are its first w.
        weights: at each of the widths that were asked for, the repaired weights of each reader, (inputs, outputs), with
            zeros in the rows of what was removed.
    """

    order: tuple[int, ...]
    weights: Mapping[int, tuple[Tensor, ...]]


def remove(
    readers: Iterable[Reader],
    units: int,
    widths: Collection[int],
    *,
    order: Sequence[int] | None = None,
    ridge: float = RIDGE,
) -> Path:
    """Remove units down to the smallest of ``widths``, a few at a time, the cheapest first.

    Args:
        readers: of one group; without any, units go in their order.
        units: how many there are.
        widths: numbers of units kept, each at least 1.
        order: all units, best first, if another criterion chose it; the weights are repaired in either case.

    Memory: three copies of the largest covariance, in float32; a reader that is made on demand is not held.

    Raises:
        torch.linalg.LinAlgError: a covariance that is not positive, or not finite.
        FloatingPointError: scores that are not finite.
    """
    states = [_State(reader, ridge) for reader in readers]
    given = None if order is None else (units - torch.tensor(order).argsort()).float()
    left = torch.arange(units)
    gone: list[int] = []

    def scores() -> Tensor:
        if given is not None:
            return given[left]
        found = sum((state.scores() for state in states), torch.zeros(len(left)))
        if not found.isfinite().all():
            raise FloatingPointError("the scores of its channels are not finite")
        return found

    snapshots: dict[int, tuple[Tensor, ...]] = {}
    for width in sorted(widths, reverse=True):
        while len(left) > width:
            worst = scores().argsort(stable=True)[: min(max(1, units // _STEPS), len(left) - width)]
            gone += left[worst].tolist()
            stays = torch.ones(len(left), dtype=torch.bool)
            stays[worst] = False
            for state in states:
                state.remove(stays)
            left = left[stays]
        snapshots[width] = tuple(state.weights() for state in states)
    best_first = left[scores().argsort(descending=True, stable=True)]
    return Path((*best_first.tolist(), *reversed(gone)), snapshots)


class _State:
    """A reader during removal: ``H`` over the inputs that can still go, unit by unit; inputs of no unit come last."""

    def __init__(self, reader: Reader, ridge: float) -> None:
        self._shape = reader.weights.shape
        self._size = reader.rows.shape[1]
        free = reader.rows.flatten()
        fixed = torch.ones(self._shape[0], dtype=torch.bool)
        fixed[free] = False
        self._inputs = torch.cat([free, fixed.nonzero().flatten()])
        self._units = len(reader.rows)
        covariance = reader.covariance[self._inputs[:, None], self._inputs].float()
        mean = float(covariance.diagonal().mean())
        covariance.diagonal().add_(ridge * (mean if mean > 0 else 1.0))
        factor = torch.linalg.cholesky(covariance)
        del covariance
        self._h = torch.cholesky_inverse(factor)
        self._a = reader.weights[self._inputs].float()
        self._gain = reader.importance.sqrt().float()

    def scores(self) -> Tensor:
        """(units left,)"""
        n, k = self._units, self._size
        own = torch.arange(n)
        blocks = self._h[: n * k, : n * k].view(n, k, n, k)[own, :, own, :]
        a = self._a[: n * k].view(n, k, -1) * self._gain
        solved: Tensor = torch.linalg.solve(blocks, a @ a.mT)  # a hundred times faster than for each output
        return solved.diagonal(dim1=1, dim2=2).sum(1)

    def remove(self, stays: Tensor) -> None:
        """Remove the units that do not stay (units left,), and let the others make up for them."""
        rows = stays.repeat_interleave(self._size)
        rows = torch.cat([rows, torch.ones(len(self._h) - len(rows), dtype=torch.bool)])
        h_gone = self._h[~rows]
        outputs = self._a.shape[1]
        shares = torch.linalg.solve(h_gone[:, ~rows], torch.cat([self._a[~rows], h_gone[:, rows]], 1))
        column = h_gone[:, rows].T
        left = rows.nonzero().flatten()
        self._a = self._a[left].addmm_(column, shares[:, :outputs], alpha=-1)
        self._h = self._h[left[:, None], left].addmm_(column, shares[:, outputs:], alpha=-1)
        self._inputs = self._inputs[left]
        self._units = int(stays.sum())

    def weights(self) -> Tensor:
        full = torch.zeros(self._shape)
        full[self._inputs] = self._a
        return full


def by_repair(_: Scored) -> None:
    """No scores: of each group those units go that repair can make up for best, which ``remove`` finds."""
