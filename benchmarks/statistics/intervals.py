"""The statistics of timings and of paired accuracies; every function names its method.

Samples of one worker process share where its memory lies and what the machine was doing, so intervals resample whole
processes; with one process only, its rounds. The functions call either a round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Rounds = Sequence[Floats]

CONFIDENCE = 0.95
_RESAMPLES = 4000
_SLOPE_PRIOR, _SLOPE_BETWEEN = 0.5, 0.25  # spreads
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
    """What is resampled: all samples of a process; the rounds where there was but one.

    Args:
        rounds: samples of each round, those of a process beside one another, as many rounds in each.

    Raises:
        ValueError: the rounds cannot be dealt out to so many processes.

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

    It cannot reach beyond the rounds' own medians: of n rounds, it holds the truth in 1 - 2^(1 - n) of all runs at
    most, that is 94% of five and 97% of six.

    Resampling blocks keeps the dependence within a block (Künsch 1989, Annals of Statistics 17:1217); here a block is
    a round (the cluster bootstrap of Davison and Hinkley 1997, section 3.8).

    Args:
        rounds: samples of each round; at least two rounds.

    >>> median_interval([np.array([1.0, 2.0, 3.0])] * 5)
    Interval(value=2.0, low=2.0, high=2.0)
    """
    value = float(np.median(np.concatenate(rounds)))
    draws = _draws(len(rounds), seed)
    return _percentile_interval(value, _quantiles(rounds, draws, 0.5), len(rounds), confidence)


def ratio_interval(
    rounds: Rounds, baseline: Rounds, processes: int | None = None, *, confidence: float = CONFIDENCE
) -> Interval:
    """How many times as long one of two interleaved series takes: a paired t interval on logarithms.

    Round i of both ran one right after the other on the same processor, so what they share cancels in the ratio of
    their medians: a busy neighbour, a lower clock. A process counts once, with the median of its rounds' ratios; the
    estimate is the geometric mean over processes, and their spread makes the interval (Student 1908, Biometrika 6:1).

    Args:
        rounds, baseline: samples of each round, those of a process beside one another.
        processes: that the rounds are of; None or 1: every round counts once.

    Raises:
        ValueError: the series have different numbers of rounds, or there is only one to count.

    >>> ratio_interval([np.array([2.0, 2.0, 9.0])] * 3, [np.array([1.0, 1.0, 1.0])] * 3)
    Interval(value=2.0, low=2.0, high=2.0)
    """
    if len(rounds) != len(baseline):
        raise ValueError(f"{len(rounds)} rounds against {len(baseline)}: not paired")
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

    Nothing ties a round of one run to a round of the other, so each series is resampled on its own (Efron and
    Tibshirani 1993, An Introduction to the Bootstrap, chapter 8). The interval holds what varied within the runs; that
    the whole machine was slower during one of them it cannot know.

    Args:
        rounds, baseline: samples of each round; at least two rounds each, not necessarily as many.

    >>> steady = [np.array([2.0, 3.0, 4.0])] * 5
    >>> unpaired_ratio_interval([3 * samples for samples in steady], steady)
    Interval(value=3.0, low=3.0, high=3.0)
    """
    value = quantile(np.concatenate(rounds), q) / quantile(np.concatenate(baseline), q)
    ours, theirs = _draws(len(rounds), (seed, 0)), _draws(len(baseline), (seed, 1))
    ratios = _quantiles(rounds, ours, q) / _quantiles(baseline, theirs, q)
    return _percentile_interval(value, ratios, min(len(rounds), len(baseline)), confidence)


class AtOnePace(NamedTuple):
    """Two series as they would have been on a machine of one pace; see ``at_one_pace``.

    Attributes:
        slope: relative change of the engine for a relative change of the yardstick of one.
        doubt: how far a ratio of the two may be off because the slope is not known exactly: half of a confidence
            interval, on a logarithmic scale.
    """

    rounds: list[Floats]
    baseline: list[Floats]
    slope: float
    doubt: float

    @property
    def ratio(self) -> Interval:
        """The ratio of the medians: ``unpaired_ratio_interval``, widened by the doubt."""
        value, low, high = unpaired_ratio_interval(self.rounds, self.baseline)
        below, above = (math.hypot(math.log(end / value), self.doubt) for end in (low, high))
        return Interval(value, value * math.exp(-below), value * math.exp(above))


def at_one_pace(
    rounds: Rounds, paces: Rounds, baseline: Rounds, baseline_paces: Rounds, *, confidence: float = CONFIDENCE
) -> AtOnePace:
    """Take out of two separate runs what a machine of changing pace made of them: an analysis of covariance.

    Within each run, rounds of a slower yardstick are rounds of a slower engine. The slope of that regression, on
    logarithms and common to both runs, moves every round to the pace halfway between the runs (Fisher 1932,
    Statistical Methods for Research Workers, section 49.1). Three things keep it from saying more than it knows:

    - The yardstick's own noise flattens a regression. Its variance, told by its turns within a round, is taken off the
      spread of the paces (Fuller 1987, Measurement Error Models, section 1.2).
    - What differs between the runs need not be what varied within them: between runs the slope has a spread of 0.25.
    - Where the runs say little, a prior of 1, give or take 0.5, decides: engines slow down about as the yardstick does
      (Gelman et al. 2013, Bayesian Data Analysis, section 14.8).

    What is not known of the slope matters the more, the more the paces differ.

    Args:
        rounds, baseline: samples of each round; two rounds each at least.
        paces, baseline_paces: what the yardstick took in the turns of each round.

    >>> steady = [np.array([2.0, 3.0, 4.0])] * 5
    >>> pace = [np.ones(4)] * 5
    >>> slower = at_one_pace([1.3 * samples for samples in steady], [1.3 * turns for turns in pace], steady, pace)
    >>> round(slower.slope, 6), round(slower.ratio.value, 6)
    (1.0, 1.0)
    """
    xs, ys = (
        [np.log([np.median(samples) for samples in one]) for one in both]
        for both in ((paces, baseline_paces), (rounds, baseline))
    )
    x, y = (np.concatenate([one - one.mean() for one in each]) for each in (xs, ys))
    within = [np.log(turns).var(ddof=1) / len(turns) for turns in (*paces, *baseline_paces) if len(turns) > 1]
    noise = (len(x) - 2) * math.pi / 2 * float(np.mean(within or 0.0))  # of medians
    free, spread = len(x) - 3, float(x @ x)
    slope, precision = 0.0, 0.0
    if spread > noise:
        true, plain = 1 - noise / spread, float(x @ y) / spread
        variance = float(np.sum((y - plain * x) ** 2)) / free / (true**2 * spread)
        slope, precision = plain / true, 1 / (variance + _SLOPE_BETWEEN**2)
    prior = 1 / _SLOPE_PRIOR**2
    slope = (slope * precision + prior) / (precision + prior)
    reach = float(stats.t.ppf((1 + confidence) / 2, free)) / math.sqrt(precision + prior)
    middle = (xs[0].mean() + xs[1].mean()) / 2
    now, before = (
        [samples * math.exp(slope * (middle - pace)) for samples, pace in zip(one, each, strict=True)]
        for one, each in zip((rounds, baseline), xs, strict=True)
    )
    return AtOnePace(now, before, slope, reach * abs(float(xs[0].mean() - xs[1].mean())))


def mann_whitney(rounds: Rounds, baseline: Rounds) -> float:
    """Two-sided p of the Mann-Whitney U test on the medians of the rounds: is either series usually the slower one?

    The test (Mann and Whitney 1947, Annals of Mathematical Statistics 18:50) wants independent observations. Samples of
    one round are not: taken one by one they would call two runs of the same engine different. A round counts once.
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

    The usual interval between two order statistics (Hahn and Meeker 1991, section 5.2) wants independent samples. With
    processes that differ by 2%, and by 1% within, it held the truth in one of seven runs where it promised nineteen
    of twenty.

    Returns:
        None where there are fewer than ``samples_needed(q)`` samples.

    >>> quantile_interval([np.arange(1.0, 101.0)] * 6, 0.9)
    Interval(value=90.0, low=90.0, high=90.0)
    """
    samples = np.concatenate(rounds)
    if len(samples) < samples_needed(q):
        return None
    estimates = _quantiles(rounds, _draws(len(rounds), seed), q)
    return _percentile_interval(quantile(samples, q), estimates, len(rounds), confidence)


@cache
def samples_needed(q: float) -> int:
    """The fewest samples from which the q-quantile may be told: 64 for p90, 130, 662 and 6636 for p95, p99 and p99.9.

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
    """Two-sided p of the exact McNemar test: are the discordant pairs split evenly?

    Args:
        only_first, only_second: images that only the first, or only the second, got right.

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


def _draws(count: int, seed: int | tuple[int, ...]) -> NDArray[np.int64]:
    if count < 2:
        raise ValueError("one round says nothing about the spread between rounds")
    return np.random.default_rng(seed).integers(count, size=(_RESAMPLES, count))


def _ranks(n: NDArray[np.int64], q: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ranks, from 1, of the ordered samples whose mean is the q-quantile, for each number of samples."""
    if q == 0.5:
        return (n + 1) // 2, n // 2 + 1
    rank = np.ceil(q * n).astype(np.int64)
    return rank, rank


def _quantiles(rounds: Rounds, draws: NDArray[np.int64], q: float) -> Floats:
    """The q-quantile of each draw of rounds: by weights on the sorted pool, so that no pool is copied for a draw."""
    pool = np.concatenate(rounds)
    owner = np.repeat(np.arange(len(rounds)), [len(samples) for samples in rounds])
    order = np.argsort(pool, kind="stable")
    pool, owner = pool[order], owner[order]
    parts = np.array_split(draws, math.ceil(draws.shape[0] * len(pool) / _CELLS))
    return np.concatenate([_weighted(pool, _counts(part, len(rounds))[:, owner], q) for part in parts])


def _counts(draws: NDArray[np.int64], rounds: int) -> NDArray[np.int64]:
    """How often each draw holds each round: (draws, rounds)."""
    cells = draws + rounds * np.arange(len(draws))[:, None]
    return np.bincount(cells.ravel(), minlength=len(draws) * rounds).reshape(len(draws), rounds)


def _weighted(pool: Floats, weights: NDArray[np.int64], q: float) -> Floats:
    """The q-quantile of the ordered ``pool`` under each row of weights."""
    below = weights.cumsum(axis=1)
    low, high = ((below < rank[:, None]).sum(axis=1) for rank in _ranks(below[:, -1], q))
    found: Floats = (pool[low] + pool[high]) / 2
    return found


def _percentile_interval(value: float, estimates: Floats, count: int, confidence: float) -> Interval:
    """The expanded percentile interval of Hesterberg 2015, The American Statistician 69:371.

    The plain percentile bootstrap of few blocks is too narrow; taking the tails that Student's t would, and undoing
    the (count - 1) / count of the plug-in variance, restores its level.
    """
    t = stats.t.ppf((1 + confidence) / 2, count - 1) * math.sqrt(count / (count - 1))
    tail = float(stats.norm.cdf(-t))
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return Interval(value, float(low), float(high))
