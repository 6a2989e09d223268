"""The record of a training, epoch by epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from compress.parse import Count, NonNegative, Share


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images; epoch 0 is the state before the first.

    Attributes:
        loss: mean over the steps; None for epoch 0.
        lr: learning rate of its first step.
        top1: held-out accuracy after it, 0 to 1; None where nothing is held back, and without labels.
        seconds: wall time, evaluation included.
        error: without labels: held-out error of the outputs, see ``distill.relative_error``.
    """

    epoch: int
    loss: float | None
    lr: float
    top1: float | None
    seconds: float
    error: float | None = None

    @property
    def score(self) -> float:
        """What the best epoch has most of; equal for all where nothing is held back."""
        return -self.error if self.error is not None else self.top1 or 0.0


@dataclass(frozen=True)
class History:
    """All epochs, and which of them the network was left at.

    Attributes:
        epochs: from epoch 0 on; empty where nothing was trained.
        best: the epoch of highest held-out accuracy or least error, the latest of equals; the last one where nothing is
            held back.
    """

    epochs: tuple[Epoch, ...]
    best: int

    @property
    def top1(self) -> float | None:
        """Held-out accuracy of the state that was kept."""
        return self.epochs[self.best].top1 if self.epochs else None

    def to_json(self) -> dict[str, Any]:
        """As ``history.json`` holds it: without the seconds, so that the same seed writes the same bytes."""
        rows = tuple(EpochRow(one.epoch, one.loss, one.lr, one.top1, one.error) for one in self.epochs)
        return asdict(HistoryFile(self.best, rows))


@dataclass(frozen=True)
class EpochRow:
    """An ``Epoch`` in JSON: see there."""

    epoch: Count
    loss: float | None
    lr: NonNegative
    top1: Share | None
    error: NonNegative | None = None


@dataclass(frozen=True)
class HistoryFile:
    """What ``history.json`` holds.

    Attributes:
        best: the epoch that the network was left at.
        epochs: from epoch 0 on; none where nothing was trained.
    """

    best: Count
    epochs: tuple[EpochRow, ...]
