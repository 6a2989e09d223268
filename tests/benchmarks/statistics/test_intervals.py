from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.statistics import intervals

TIMES = st.lists(st.floats(0.1, 1e3), min_size=1, max_size=12)
ROUNDS = st.lists(TIMES.map(np.array), min_size=2, max_size=8)


def noisy(rng: np.random.Generator, level: np.ndarray, centre: float) -> list[np.ndarray]:
    return [centre * np.exp(shift + rng.normal(0, 0.02, 15)) for shift in level]


@settings(max_examples=25, deadline=None)
@given(ROUNDS, st.floats(0.5, 4.0))
def test_median_interval_holds_the_median_and_scales(rounds: list[np.ndarray], factor: float) -> None:
    found = intervals.median_interval(rounds)
    assert found.value == np.median(np.concatenate(rounds))
    assert found.low <= found.high
    scaled = intervals.median_interval([samples * factor for samples in rounds])
    np.testing.assert_allclose(scaled, np.array(found) * factor, rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(ROUNDS)
def test_a_series_is_as_fast_as_itself(rounds: list[np.ndarray]) -> None:
    assert intervals.ratio_interval(rounds, rounds) == (1.0, 1.0, 1.0)


@settings(max_examples=25, deadline=None)
@given(ROUNDS, st.integers(0, 5))
def test_bootstrap_quantiles_are_numpys(rounds: list[np.ndarray], seed: int) -> None:
    draws = np.random.default_rng(seed).integers(len(rounds), size=(5, len(rounds)))
    for q, method in [(0.5, "linear"), (0.9, "inverted_cdf")]:
        pools = [np.concatenate([rounds[i] for i in draw]) for draw in draws]
        expected = [np.quantile(pool, q, method=method) for pool in pools]
        np.testing.assert_allclose(intervals._quantiles(rounds, q)(draws, -1), expected)
        assert intervals.quantile(pools[0], q) == pytest.approx(expected[0])


def test_intervals_keep_their_level() -> None:
    """In 150 series with machine noise shared by the rounds, about 95% of the intervals hold the truth."""
    rng = np.random.default_rng(0)
    medians = ratios = 0
    for _ in range(150):
        shared = rng.normal(0, 0.03, 20)
        a, b = noisy(rng, shared, 2.0), noisy(rng, shared, 1.0)
        median, ratio = intervals.median_interval(a), intervals.ratio_interval(a, b)
        medians += median.low <= 2.0 <= median.high
        ratios += ratio.low <= 2.0 <= ratio.high
    low = scipy.stats.binom.ppf(0.001, 150, 0.95)
    assert medians >= low
    assert ratios >= low


def test_pairing_cancels_what_the_rounds_share() -> None:
    rng = np.random.default_rng(1)
    shared = rng.normal(0, 0.2, 20)
    found = intervals.ratio_interval(noisy(rng, shared, 1.05), noisy(rng, shared, 1.0))
    assert 1.0 < found.low < 1.05 < found.high < 1.1


def test_separate_runs_of_one_engine_do_not_differ() -> None:
    """A/A: of 150 pairs of runs, about 95% of the intervals hold 1 and about 95% of the p are above 5%.

    Taken sample by sample, the rank test calls most of these runs different: they share what their rounds had.
    """
    rng = np.random.default_rng(2)
    holds = median_test = sample_test = 0
    for _ in range(150):
        a, b = noisy(rng, rng.normal(0, 0.03, 20), 1.0), noisy(rng, rng.normal(0, 0.03, 16), 1.0)
        found = intervals.unpaired_ratio_interval(a, b)
        holds += found.low <= 1 <= found.high
        median_test += intervals.mann_whitney(a, b) > 0.05
        sample_test += scipy.stats.mannwhitneyu(np.concatenate(a), np.concatenate(b)).pvalue > 0.05
    low = scipy.stats.binom.ppf(0.001, 150, 0.95)
    assert min(holds, median_test) >= low
    assert sample_test < low


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_a_slower_run_is_found(q: float) -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        a, b = noisy(rng, rng.normal(0, 0.01, 20), 1.05), noisy(rng, rng.normal(0, 0.01, 20), 1.0)
        assert 1 < intervals.unpaired_ratio_interval(a, b, q).low < 1.05
        assert intervals.mann_whitney(a, b) < 0.01


def test_unpaired_interval_is_scipys_bootstrap() -> None:
    """At one sample a round, and at the level that the expansion of the percentile interval comes to."""
    rng = np.random.default_rng(4)
    a, b = rng.lognormal(0.2, 0.1, 15), rng.lognormal(0, 0.1, 15)
    found = intervals.unpaired_ratio_interval([np.array([x]) for x in a], [np.array([x]) for x in b])
    level = 1 - 2 * scipy.stats.norm.cdf(-scipy.stats.t.ppf(0.975, 14) * math.sqrt(15 / 14))
    expected = scipy.stats.bootstrap(
        (a, b),
        lambda x, y, axis: np.median(x, axis) / np.median(y, axis),
        n_resamples=20_000,
        confidence_level=level,
        method="percentile",
        rng=rng,
    ).confidence_interval
    np.testing.assert_allclose(found[1:], expected, rtol=0.01)


@settings(max_examples=25, deadline=None)
@given(ROUNDS, ROUNDS, st.floats(0.5, 4.0), st.sampled_from([0.5, 0.9]))
def test_unpaired_ratio_scales_and_ranks_do_not(
    a: list[np.ndarray], b: list[np.ndarray], factor: float, q: float
) -> None:
    found = intervals.unpaired_ratio_interval(a, b, q)
    assert found.low <= found.high
    assert found.value == pytest.approx(
        intervals.quantile(np.concatenate(a), q) / intervals.quantile(np.concatenate(b), q)
    )
    slower = intervals.unpaired_ratio_interval([samples * factor for samples in a], b, q)
    np.testing.assert_allclose(slower, np.array(found) * factor, rtol=1e-9)
    p = intervals.mann_whitney(a, b)
    assert 0 < p <= 1
    assert p == intervals.mann_whitney(b, a)


def test_the_two_runs_are_resampled_independently() -> None:
    """The paired interval of a series with itself has no width; two runs that happen to look alike tell less."""
    rng = np.random.default_rng(5)
    a = noisy(rng, rng.normal(0, 0.03, 20), 1.0)
    found = intervals.unpaired_ratio_interval(a, a)
    assert found.low < 0.99 < found.value == 1 < 1.01 < found.high


def test_published_mann_whitney() -> None:
    """Permeability of the human chorioamnion (Hollander and Wolfe 1973, p. 69): one-sided p 0.1272, exact."""
    term = [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46]
    early = [1.15, 0.88, 0.90, 0.74, 1.21]
    found = intervals.mann_whitney([np.array([x]) for x in term], [np.array([x]) for x in early])
    assert found == pytest.approx(2 * 0.1272, abs=1e-4)
    assert intervals.mann_whitney([np.ones(3)] * 4, [np.ones(2)] * 3) == 1.0


def test_what_slows_both_cancels_in_a_tail_too() -> None:
    """40 runs of six processes whose pace differs by 10%; one engine takes 1.05 times as long as the other."""
    rng = np.random.default_rng(6)
    paired, unpaired = [], []
    for _ in range(40):
        shared = rng.normal(0, 0.1, 6)
        a, b = noisy(rng, shared, 1.05), noisy(rng, shared, 1.0)
        paired.append(intervals.paired_quantile_ratio(a, b, 0.9))
        unpaired.append(intervals.unpaired_ratio_interval(a, b, 0.9))
    assert sum(one.low <= 1.05 <= one.high for one in paired) >= 36
    paired_width, unpaired_width = (np.median([one.high - one.low for one in each]) for each in (paired, unpaired))
    assert 3 * paired_width < unpaired_width


def test_unpaired_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="not paired"):
        intervals.ratio_interval([np.ones(3)] * 3, [np.ones(3)] * 2)
    with pytest.raises(ValueError, match="not paired"):
        intervals.paired_quantile_ratio([np.ones(3)] * 3, [np.ones(3)] * 2, 0.9)
    with pytest.raises(ValueError, match="one round"):
        intervals.median_interval([np.ones(3)])


@pytest.mark.parametrize(("q", "n"), [(0.9, 64), (0.95, 130), (0.99, 662), (0.999, 6636)])
def test_samples_needed_are_mlperfs(q: float, n: int) -> None:
    assert intervals.samples_needed(q) == n
    assert intervals.quantile_interval([np.ones(n - 10), np.ones(9)], q) is None
    assert intervals.quantile_interval([np.ones(n - 10), np.ones(10)], q) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("processes", "q"), [(6, 0.5), (10, 0.5), (10, 0.9), (20, 0.9)])
def test_intervals_hold_the_truth_where_processes_differ(processes: int, q: float) -> None:
    """Processes differ by 2%, samples of one by 1%: both are normal, so the truth is known."""
    rng = np.random.default_rng(5)
    truth = 1 + scipy.stats.norm.ppf(q) * math.hypot(0.02, 0.01)
    held = 0
    for _ in range(100):
        blocks = [1 + rng.normal(0, 0.02) + rng.normal(0, 0.01, 40) for _ in range(processes)]
        found = intervals.median_interval(blocks) if q == 0.5 else intervals.quantile_interval(blocks, q)
        assert found is not None
        held += found.low <= truth <= found.high
    assert held >= 100 * (0.9 if q == 0.5 else 0.8)  # an outer quantile of ten processes is known less well


def test_outliers_are_ten_robust_deviations_away() -> None:
    samples = np.array([9.0, 10.0, 10.0, 11.0, 11.0, 9.0, 10.0, 24.0, 26.0])
    assert intervals.mad(samples) == 1.0
    assert samples[intervals.outliers(samples)].tolist() == [26.0]
    assert not intervals.outliers(np.ones(5)).any()


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test(b: int, c: int) -> None:
    assert intervals.mcnemar(b, c) == intervals.mcnemar(c, b)
    if b + c:
        expected = scipy.stats.binomtest(b, b + c).pvalue
        assert intervals.mcnemar(b, c) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        # airway hyper-responsiveness before and after transplantation (Fagerland et al. 2014, Stat Med 33:2850)
        ((1, 1, 7, 12), (-0.507, -0.026)),
        # Altman et al. 2000, Statistics with Confidence, table 6.2
        ((14, 5, 0, 22), (0.011, 0.226)),
    ],
)
def test_published_paired_intervals(table: tuple[int, int, int, int], expected: tuple[float, float]) -> None:
    found = intervals.paired_difference(*table)
    assert (round(found.low, 3), round(found.high, 3)) == expected


@given(*[st.integers(0, 300)] * 4)
def test_paired_difference_is_antisymmetric_and_within_range(a: int, b: int, c: int, d: int) -> None:
    if a + b + c + d == 0:
        return
    found, swapped = intervals.paired_difference(a, b, c, d), intervals.paired_difference(a, c, b, d)
    assert found.value == pytest.approx((b - c) / (a + b + c + d))
    np.testing.assert_allclose(found, (-swapped.value, -swapped.high, -swapped.low), atol=1e-12)
    assert -1 - 1e-9 <= found.low <= found.value <= found.high <= 1 + 1e-9


def test_paired_interval_keeps_its_level() -> None:
    """Exact coverage, by going through every table of 60 pairs with few discordant ones."""
    n, p_first, p_second = 60, 0.1, 0.05
    covered = 0.0
    for b in range(20):
        for c in range(20):
            probability = scipy.stats.multinomial.pmf([b, c, n - b - c], n, [p_first, p_second, 1 - p_first - p_second])
            both = round(0.8 * (n - b - c))
            found = intervals.paired_difference(both, b, c, n - b - c - both)
            covered += probability * (found.low <= p_first - p_second <= found.high)
    assert covered > 0.94


def test_whole_processes_are_resampled_because_processes_differ() -> None:
    """80 pairs of runs of one engine, in ten processes each that differ by 1%; rounds within a process hardly do."""
    rng = np.random.default_rng(0)

    def run() -> list[np.ndarray]:
        lives = np.exp(rng.normal(0, 0.01, 10)).repeat(4)
        return [life * np.exp(rng.normal(0, 0.005, 12)) for life in lives]

    pairs = [(run(), run()) for _ in range(80)]

    def misses(processes: int) -> int:
        found = [
            intervals.unpaired_ratio_interval(*(intervals.blocks(one, processes) for one in pair)) for pair in pairs
        ]
        return sum(not ratio.low <= 1 <= ratio.high for ratio in found)

    assert misses(10) <= 9  # one in twenty is expected
    assert misses(1) > 16  # of 4 that are expected
