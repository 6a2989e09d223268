"""Compute an engine's accuracy from its predictions, and compare it with another engine's, image by image."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.predictions import TOP, Predictions
from benchmarks.results.accuracy import Accuracy, AccuracyResult, ClassAccuracy, PairedAccuracy
from benchmarks.results.base import Bounds, Verdict
from benchmarks.statistics import intervals
from benchmarks.statistics.paired import paired_ratio
from benchmarks.timing.machine import host, tool


@dataclass(frozen=True)
class Gates:
    """How much worse than another engine an engine may be; None: no limit.

    Attributes:
        max_drop: largest drop of top-1, in percentage points.
        min_ratio: smallest top-1, as a share of the other's.
    """

    max_drop: float | None = None
    min_ratio: float | None = None

    def failures(self, paired: PairedAccuracy) -> list[str]:
        """Messages of the gates that fail; empty if all pass.

        A gate compares the limit with the lower bound of a two-sided 95% interval: an engine that is exactly at the
        limit passes in about one of forty runs.
        """
        found = []
        if self.max_drop is not None and (drop := -100 * paired.difference.lo) > self.max_drop:
            found.append(f"the 95% interval includes a drop of {drop:.2f} points, {self.max_drop:g} are allowed")
        if self.min_ratio is not None and (paired.ratio is None or paired.ratio.lo < self.min_ratio):
            if paired.ratio is None:
                least = "there is no ratio, because the other engine classified no image correctly"
            else:
                least = f"the 95% interval includes a ratio of {paired.ratio.lo:.4f}"
            found.append(f"{least}, at least {self.min_ratio:g} is required")
        return found


def compare(this: Predictions, other: Predictions) -> PairedAccuracy:
    """Compare two engines' predictions, image by image."""
    mine, theirs = this.right, other.right
    both, neither = int((mine & theirs).sum()), int((~mine & ~theirs).sum())
    only_this, only_other = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
    return PairedAccuracy(
        against=other.artifact,
        top1=_share(theirs),
        per_class=per_class(other),
        only_this=only_this,
        only_other=only_other,
        difference=Bounds.of(intervals.paired_difference(both, only_this, only_other, neither)),
        ratio=Bounds.of(paired_ratio(both, only_this, only_other)) if theirs.any() else None,
        mcnemar_p=intervals.mcnemar(only_this, only_other),
        agreement=float((this.ranked[:, 0] == other.ranked[:, 0]).mean()),
    )


def per_class(found: Predictions) -> list[ClassAccuracy]:
    """Images and correct predictions of every class that has images, in the order of the logits."""
    present, images = np.unique(found.labels, return_counts=True)
    correct = np.bincount(found.labels[found.right], minlength=len(found.names))
    return [
        ClassAccuracy(index=int(i), name=found.names[i], images=int(n), correct=int(correct[i]))
        for i, n in zip(present, images, strict=True)
    ]


def result_of(this: Predictions, other: Predictions | None = None, *, argv: Sequence[str] = ()) -> AccuracyResult:
    """The result of one engine, paired with another's predictions if they are given."""
    both = [this] if other is None else [this, other]
    reasons = [f"the outputs of {one.artifact.path} hold NaN or infinity" for one in both if not one.finite]
    return AccuracyResult(
        run_id=uuid.uuid4().hex,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        tool=tool(),
        argv=list(argv),
        config={},
        artifact=this.artifact,
        backend=this.backend,
        host=host(this.backend.name),
        modes=dict(this.modes),
        warnings=list(dict.fromkeys(text for one in both for text in one.warnings)),
        verdict=Verdict(status="INVALID" if reasons else "VALID", reasons=reasons),
        images=len(this.labels),
        top1=_share(this.right),
        top5=_share((this.ranked == this.labels[:, None]).any(axis=1)) if len(this.names) > TOP else None,
        per_class=per_class(this),
        paired=None if other is None else compare(this, other),
    )


def _share(right: NDArray[np.bool_]) -> Accuracy:
    count = int(right.sum())
    return Accuracy(correct=count, value=Bounds.of(intervals.wilson(count, len(right))))
