"""Statistics of timings and of paired accuracies; every function names its method.

Samples of one worker process are not independent: they share its memory layout and the state of the machine. So
intervals resample whole processes, or the rounds if there is only one process. The functions call both a round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Rounds = Sequence[Floats]
Draws = NDArray[np.int64]

CONFIDENCE = 0.95
_RESAMPLES = 4000
_CELLS = 1 << 20  # samples times resamples that are held in memory at once


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float

    @property
    def precision(self) -> float:
        """How far the interval reaches from the estimate, as a share of it."""
        return max(self.high - self.value, self.value - self.low) / self.value


def blocks(rounds: Rounds, processes: int) -> list[Floats]:
    """The blocks to resample: all samples of a process, or the rounds if there was only one process.

    Args:
        rounds: samples of each round, grouped by process, with the same number of rounds in each.

    Raises:
        ValueError: the number of rounds is not a multiple of the processes.

    >>> [block.tolist() for block in blocks([np.array([i]) for i in range(6)], 3)]
    [[0, 1], [2, 3], [4, 5]]
    """
    if processes == 1:
        return list(rounds)
    turns, rest = divmod(len(rounds), processes)
    if rest or not turns:
        raise ValueError(f"{len(rounds)} rounds are not those of {processes} processes")
    return [np.concatenate(rounds[start : start + turns]) for start in range(0, len(rounds), turns)]


def median_interval(rounds: Rounds, *, seed: int = 0, confidence: float = CONFIDENCE) -> Interval:
    """The median of all samples, with a percentile bootstrap interval over whole rounds.

    The interval cannot reach beyond the rounds' own medians: with n rounds it contains the true value in at most
    1 - 2^(1 - n) of all runs, that is 94% with five rounds and 97% with six.

    Resampling blocks keeps the dependence within a block (Künsch 1989, Annals of Statistics 17:1217); here a block is
    a round (the cluster bootstrap of Davison and Hinkley 1997, section 3.8).

    Args:
        rounds: samples of each round; at least two rounds.

    >>> median_interval([np.array([1.0, 2.0, 3.0])] * 5)
    Interval(value=2.0, low=2.0, high=2.0)
    """
    value = float(np.median(np.concatenate(rounds)))
    return _bootstrap(value, _quantiles(rounds, 0.5), [rounds], seed, confidence)


def ratio_interval(
    rounds: Rounds, baseline: Rounds, processes: int | None = None, *, confidence: float = CONFIDENCE
) -> Interval:
    """The ratio of the times of two interleaved series: a paired t interval on logarithms.

    Round i of both series ran one right after the other on the same processor, so a common disturbance, such as another
    program or a lower clock, cancels in the ratio of their medians. A process counts once, with the median of its
    rounds' ratios; the estimate is the geometric mean over processes, and their spread gives the interval (Student
    1908, Biometrika 6:1).

    Args:
        rounds, baseline: samples of each round, grouped by process.
        processes: number of processes of the rounds; None or 1: every round counts once.

    Raises:
        ValueError: the series have different numbers of rounds, or there is only one to count.

    >>> ratio_interval([np.array([2.0, 2.0, 9.0])] * 3, [np.array([1.0, 1.0, 1.0])] * 3)
    Interval(value=2.0, low=2.0, high=2.0)
    """
    _require_pairs(rounds, baseline)
    ratios = [np.atleast_1d(np.median(a) / np.median(b)) for a, b in zip(rounds, baseline, strict=True)]
    logs = np.log([np.median(block) for block in blocks(ratios, processes or 1)])
    if len(logs) < 2:
        raise ValueError("one round says nothing about the spread between rounds")
    reach = float(stats.t.ppf((1 + confidence) / 2, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
    value = float(np.exp(logs.mean()))
    return Interval(value, value * math.exp(-reach), value * math.exp(reach))


def unpaired_ratio_interval(
    rounds: Rounds, baseline: Rounds, q: float = 0.5, *, seed: int = 0, confidence: float = CONFIDENCE
) -> Interval:
    """The ratio of the q-quantiles of two series of separate runs, with a two-sample bootstrap interval over rounds.

    The rounds of separate runs are not paired, so each series is resampled on its own (Efron and Tibshirani 1993, An
    Introduction to the Bootstrap, chapter 8). The interval covers the variation within the runs; it cannot show that
    the whole machine was slower during one of them.

    Args:
        rounds, baseline: samples of each round; at least two rounds each, possibly different numbers.

    >>> steady = [np.array([2.0, 3.0, 4.0])] * 5
    >>> unpaired_ratio_interval([3 * samples for samples in steady], steady)
    Interval(value=3.0, low=3.0, high=3.0)
    """
    value = quantile(np.concatenate(rounds), q) / quantile(np.concatenate(baseline), q)
    ours, theirs = _quantiles(rounds, q), _quantiles(baseline, q)

    def ratios(draws: Draws, baseline_draws: Draws, axis: int) -> Floats:
        return ours(draws, axis) / theirs(baseline_draws, axis)

    return _bootstrap(value, ratios, [rounds, baseline], seed, confidence)


def paired_quantile_ratio(
    rounds: Rounds, baseline: Rounds, q: float, *, seed: int = 0, confidence: float = CONFIDENCE
) -> Interval:
    """The ratio of the q-quantiles of two interleaved series, with a bootstrap interval over pairs of rounds.

    Round i of both series ran on the same processor at nearly the same time, so both are drawn together: a disturbance
    that slowed both cancels (Davison and Hinkley 1997, Bootstrap Methods and their Application, section 3.8: the pair
    is the cluster).

    Args:
        rounds, baseline: samples of each round (of each process, where there are several); at least two rounds.

    Raises:
        ValueError: the series have different numbers of rounds, or there is only one.

    >>> tail = [np.array([2.0, 3.0, 4.0])] * 5
    >>> paired_quantile_ratio([3 * samples for samples in tail], tail, 0.9)
    Interval(value=3.0, low=3.0, high=3.0)
    """
    _require_pairs(rounds, baseline)
    value = quantile(np.concatenate(rounds), q) / quantile(np.concatenate(baseline), q)
    ours, theirs = _quantiles(rounds, q), _quantiles(baseline, q)
    return _bootstrap(value, lambda draws, axis: ours(draws, axis) / theirs(draws, axis), [rounds], seed, confidence)


def _require_pairs(rounds: Rounds, baseline: Rounds) -> None:
    if len(rounds) != len(baseline):
        raise ValueError(f"{len(rounds)} rounds against {len(baseline)}: not paired")


def mann_whitney(rounds: Rounds, baseline: Rounds) -> float:
    """Two-sided p of the Mann-Whitney U test on the medians of the rounds: whether one series is usually slower.

    The test (Mann and Whitney 1947, Annals of Mathematical Statistics 18:50) requires independent observations. Samples
    of one round are not independent: taken singly, they would call two runs of the same engine different. So each round
    counts once.
    """
    ours, theirs = ([float(np.median(samples)) for samples in one] for one in (rounds, baseline))
    if len({*ours, *theirs}) == 1:
        return 1.0  # no order among them, so no evidence; the normal approximation would divide by zero
    return float(stats.mannwhitneyu(ours, theirs).pvalue)


def quantile(samples: Floats, q: float) -> float:
    """The usual median; any other quantile is the inverse of the empirical distribution, a value that was measured.

    >>> quantile(np.array([4.0, 1.0, 2.0, 3.0]), 0.5), quantile(np.array([4.0, 1.0, 2.0, 3.0]), 0.9)
    (2.5, 4.0)
    """
    ordered = np.sort(samples)
    low, high = _ranks(np.array(len(ordered)), q)
    return float(ordered[low - 1] + ordered[high - 1]) / 2


def quantile_interval(rounds: Rounds, q: float, *, seed: int = 0, confidence: float = CONFIDENCE) -> Interval | None:
    """The q-quantile of all samples, with the interval of ``median_interval``.

    The usual interval between two order statistics (Hahn and Meeker 1991, section 5.2) requires independent samples. In
    a simulation with a spread of 2% between processes and 1% within, its 95% interval contained the true value in only
    one of seven runs.

    Returns:
        None if there are fewer than ``samples_needed(q)`` samples.

    >>> quantile_interval([np.arange(1.0, 101.0)] * 6, 0.9)
    Interval(value=90.0, low=90.0, high=90.0)
    """
    samples = np.concatenate(rounds)
    if len(samples) < samples_needed(q):
        return None
    return _bootstrap(quantile(samples, q), _quantiles(rounds, q), [rounds], seed, confidence)


@cache
def samples_needed(q: float) -> int:
    """The fewest samples for which the q-quantile is reported: 64 for p90, 130, 662 and 6636 for p95, p99 and p99.9.

    With that many, fewer than two samples beyond the quantile have a probability of 1% at most; these are the counts
    of MLPerf Inference's early-stopping rule (99% confidence, one query over the limit).

    >>> [samples_needed(q) for q in (0.9, 0.95, 0.99)]
    [64, 130, 662]
    """
    low, high = 1, math.ceil(10 / (1 - q))
    while high - low > 1:
        n = (low + high) // 2
        low, high = (low, n) if stats.binom.cdf(1, n, 1 - q) <= 0.01 else (n, high)
    return high


def mad(samples: Floats) -> float:
    """Median absolute deviation from the median, unscaled."""
    return float(np.median(np.abs(samples - np.median(samples))))


def outliers(samples: Floats) -> NDArray[np.bool_]:
    """Which samples lie beyond ten robust standard deviations: |x - median| > 14.826 MAD (as hyperfine flags them).

    1.4826 MAD estimates the standard deviation of a normal distribution (Iglewicz and Hoaglin 1993).
    """
    spread = mad(samples)
    return np.abs(samples - np.median(samples)) > 14.826 * max(spread, np.finfo(float).tiny)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of the exact McNemar test: whether the discordant pairs are split evenly.

    Args:
        only_first, only_second: images that only the first, or only the second, classified correctly.

    >>> round(mcnemar(1, 7), 4)
    0.0703
    """
    pairs = only_first + only_second
    return float(stats.binomtest(only_first, pairs, 0.5).pvalue) if pairs else 1.0


def paired_difference(both: int, only_first: int, only_second: int, neither: int) -> Interval:
    """First accuracy minus second, on the same images, with Newcombe's hybrid score interval (95%).

    Method 10 of Newcombe 1998, Statistics in Medicine 17:2635: Wilson's intervals of the two accuracies, joined with
    their correlation. It needs no normal approximation of the difference and keeps its level at few discordant pairs.

    Args:
        both, only_first, only_second, neither: images by who got them right; at least one image.

    >>> [round(x, 3) for x in paired_difference(1, 1, 7, 12)]
    [-0.286, -0.507, -0.026]
    """
    n = both + only_first + only_second + neither
    first, second = wilson(both + only_first, n), wilson(both + only_second, n)
    phi = _correlation(both, only_first, only_second, neither)

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    value = (only_first - only_second) / n
    return Interval(
        value,
        value - reach(first.value - first.low, second.high - second.value),
        value + reach(first.high - first.value, second.value - second.low),
    )


def wilson(successes: int, n: int) -> Interval:
    """A proportion with Wilson's score interval (95%)."""
    found = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(successes / n, float(found.low), float(found.high))


def _correlation(both: int, only_first: int, only_second: int, neither: int) -> float:
    """Phi of the 2x2 table, with Newcombe's continuity correction towards zero where it is positive."""
    cross = float(both * neither - only_first * only_second)
    if cross > 0:
        cross = max(cross - (both + only_first + only_second + neither) / 2, 0.0)
    margins = math.prod((both + only_first, only_second + neither, both + only_second, only_first + neither))
    return cross / math.sqrt(margins) if margins else 0.0


def _ranks(n: NDArray[np.int64], q: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ranks, from 1, of the ordered samples whose mean is the q-quantile, for each number of samples."""
    if q == 0.5:
        return (n + 1) // 2, n // 2 + 1
    rank = np.ceil(q * n).astype(np.int64)
    return rank, rank


def _quantiles(rounds: Rounds, q: float) -> Callable[[Draws, int], Floats]:
    """A function for the q-quantile of each draw of rounds. It weights the sorted pool instead of copying samples."""
    pool = np.concatenate(rounds)
    owner = np.repeat(np.arange(len(rounds)), [len(samples) for samples in rounds])
    order = np.argsort(pool, kind="stable")
    pool, owner = pool[order], owner[order]
    return lambda draws, axis: _weighted(pool, _counts(draws, len(rounds))[:, owner], q)


def _counts(draws: Draws, rounds: int) -> NDArray[np.int64]:
    """How often each draw holds each round: (draws, rounds)."""
    cells = draws + rounds * np.arange(len(draws))[:, None]
    return np.bincount(cells.ravel(), minlength=len(draws) * rounds).reshape(len(draws), rounds)


def _weighted(pool: Floats, weights: NDArray[np.int64], q: float) -> Floats:
    """The q-quantile of the ordered ``pool`` under each row of weights."""
    below = weights.cumsum(axis=1)
    low, high = ((below < rank[:, None]).sum(axis=1) for rank in _ranks(below[:, -1], q))
    found: Floats = (pool[low] + pool[high]) / 2
    return found


def _bootstrap(
    value: float, statistic: Callable[..., Floats], series: Sequence[Rounds], seed: int, confidence: float
) -> Interval:
    """The expanded percentile interval of Hesterberg 2015, The American Statistician 69:371, over whole rounds.

    The plain percentile bootstrap of few blocks is too narrow: with five, ten and twenty blocks the 95% interval
    contained the true value in 87, 92 and 94% of a thousand runs. Using the tails of Student's t, and correcting the
    factor (count - 1) / count of the plug-in variance, gives 92, 96 and 97%.

    Args:
        statistic: function of the indices of the rounds drawn from each series, (draws, rounds) each, and an axis.
    """
    count = min(map(len, series))
    if count < 2:
        raise ValueError("one round says nothing about the spread between rounds")
    t = stats.t.ppf((1 + confidence) / 2, count - 1) * math.sqrt(count / (count - 1))
    found = stats.bootstrap(
        [np.arange(len(rounds)) for rounds in series],
        statistic,
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=max(1, _CELLS // sum(len(samples) for rounds in series for samples in rounds)),
        method="percentile",
        confidence_level=1 - 2 * float(stats.norm.cdf(-t)),
        rng=np.random.default_rng(seed),
    )
    return Interval(value, *map(float, found.confidence_interval))
