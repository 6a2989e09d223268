"""Try hypotheses on the same images, and decide whether one is clearly better than the configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from calibration.loader import batches
from calibration.preprocess import Preprocess
from calibration.split import Split
from calibration.transforms import eval_transform
from compress.check.classes import Indices, Order, fitted, fitted_right, known_orders
from compress.check.hypotheses import Hypothesis, geometry_hypotheses, value_hypotheses
from compress.errors import DataError
from compress.progress import SILENT, Progress

CLEAR = 0.01  # the probability of such a difference by chance below which it is clear
_SIMPLER = 0.05  # a simpler hypothesis is preferred unless it is worse with a probability below this
_WORTH_A_LOOK = 0.2
_BATCH = 32
Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Images (N, C, H, W) -> logits (N, outputs)."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What a network answered under one hypothesis.

    Attributes:
        order: which output stands for which class.
        right: (N,) whether each image's answer is right.
    """

    hypothesis: Hypothesis
    order: Order
    right: NDArray[np.bool_]

    @property
    def changes(self) -> tuple[str, ...]:
        return (*self.hypothesis.changes, *((self.order.name,) if self.order.name else ()))

    @property
    def top1(self) -> float:
        return float(self.right.mean())


@dataclass(frozen=True, eq=False)
class Finding:
    """The outcome of a search.

    Attributes:
        configured: the answers as configured.
        tried: all others, the best first.
        best: the simplest of the best; it may be ``configured``.
        p: probability that ``best`` looks so much better than ``configured`` by chance, corrected for the number of
            hypotheses.
        fresh: how many images that chose nothing were used for ``p``; 0 if none were.
        chance: share of right answers of a network that guesses.
    """

    configured: Answers
    tried: tuple[Answers, ...]
    best: Answers
    p: float
    fresh: int
    chance: float

    @property
    def clear(self) -> bool:
        """Whether a hypothesis is clearly better than the configuration."""
        return self.best is not self.configured and self.p < CLEAR

    @property
    def guesses(self) -> bool:
        """Whether the answers as configured may be guesses."""
        right = self.configured.right
        return bool(binomtest(int(right.sum()), len(right), self.chance, alternative="greater").pvalue > CLEAR)


def by_chance(better: NDArray[np.bool_], worse: NDArray[np.bool_]) -> float:
    """McNemar's exact test, one-sided: the probability that ``better`` has so many more right answers by chance.

    >>> right = np.array([True] * 10)
    >>> round(by_chance(right, ~right), 4), by_chance(right, right)
    (0.001, 1.0)
    """
    gained, lost = int((better & ~worse).sum()), int((worse & ~better).sum())
    return float(binomtest(gained, gained + lost, 0.5, alternative="greater").pvalue) if gained + lost else 1.0


def search(
    predict: Predict,
    base: Preprocess,
    sample: Split,
    fresh: Split,
    *,
    outputs: int,
    resizable: bool,
    workers: int = 0,
    progress: Progress = SILENT,
) -> Finding:
    """Try other preprocessing and other orders of the classes on ``sample``.

    Args:
        base: the configured preprocessing.
        fresh: other images; if ``sample`` leaves it open whether a hypothesis is better, these decide.
        outputs: how many the network has.
        resizable: the network takes inputs of any size.

    Raises:
        DataError: an image cannot be read, or is too small for the configured preprocessing.
    """

    def predicted(hypothesis: Hypothesis, split: Split) -> Indices:
        loader = batches(split, eval_transform(hypothesis.preprocess), _BATCH, workers=workers)
        return np.concatenate([predict(x.numpy()).argmax(1) for x, _ in loader]).astype(np.int64)

    def tried(hypotheses: Sequence[Hypothesis], orders: Sequence[Order], *, fit: bool) -> Iterable[Answers]:
        for hypothesis in progress.track(hypotheses, "trying hypotheses"):
            try:
                found = predicted(hypothesis, sample)
            except DataError:
                if not hypothesis.changes:
                    raise
                continue  # the images are too small for this one
            for order in orders:
                yield Answers(hypothesis, order, order.outputs[sample.labels] == found)
            right = fitted_right(found, sample.labels, classes, outputs) if fit else None
            if right is not None:
                order = fitted(found, sample.labels, classes, outputs)
                if (order.outputs != own.outputs).any():
                    yield Answers(hypothesis, order, right)

    classes = len(sample.classes)
    own = Order("", np.arange(classes))
    orders = [own, *known_orders(sample.classes, sample.labels, outputs)]
    values = [Hypothesis(base), *value_hypotheses(base, *_statistics(sample, base))]
    answers = list(tried(values, orders, fit=True))
    configured = answers[0]
    best = _simplest_of_best(answers)
    geometries = list(geometry_hypotheses(best.hypothesis, resizable=resizable))
    answers += tried(geometries, [best.order], fit=False)
    best = _simplest_of_best([best, *answers])
    p, used = by_chance(best.right, configured.right) * (len(answers) - 1), 0
    worth = by_chance(best.right, configured.right) < _WORTH_A_LOOK
    if best is not configured and worth and not p < CLEAR and len(fresh):
        both = [one.order.outputs[fresh.labels] == predicted(one.hypothesis, fresh) for one in (best, configured)]
        p, used = by_chance(*both), len(fresh)
    others = sorted((one for one in answers if one is not configured), key=_rank, reverse=True)
    chance = 1 / max(outputs, 1)
    return Finding(configured, tuple(others), best, min(p, 1.0), used, chance)


def _rank(answers: Answers) -> tuple[int, int]:
    return int(answers.right.sum()), -len(answers.changes)


def _simplest_of_best(answers: Sequence[Answers]) -> Answers:
    """Of those that are not clearly worse than the best, the one with the fewest changes; then the best."""
    best = max(answers, key=_rank)
    good = [one for one in answers if by_chance(best.right, one.right) > _SIMPLER]
    return min(good, key=lambda one: (len(one.changes), -int(one.right.sum())))


def _statistics(sample: Split, base: Preprocess) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel (RGB) of the pixels of the images, in 0..1."""
    plain = Preprocess(
        base.size,
        base.resize,
        (0.0,) * base.channels,
        (1.0,) * base.channels,
        base.channels,
        base.interpolation,
        base.antialias,
    )
    loader = batches(sample, eval_transform(plain), _BATCH)
    sums = np.array(
        [[x.double().mean((0, 2, 3)).numpy(), (x.double() ** 2).mean((0, 2, 3)).numpy()] for x, _ in loader]
    )
    mean, square = sums.mean(0)
    std = np.sqrt(np.maximum(square - mean**2, 1e-8))
    return tuple(round(float(v), 4) for v in mean), tuple(max(round(float(v), 4), 1e-4) for v in std)
