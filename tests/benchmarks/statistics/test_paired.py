from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import chi2

from benchmarks.statistics.paired import paired_ratio

COUNTS = st.integers(0, 2000)


def test_a_published_interval() -> None:
    """Cavo et al. 2012, as in Fagerland, Lydersen and Laake 2017, Statistical Analysis of Contingency Tables."""
    assert paired_ratio(59, 6, 16) == pytest.approx((0.8667, 0.7476, 0.9876), abs=5e-5)


def test_without_discordant_images_the_limit_is_known() -> None:
    """Then the score test reduces to n (1 - ratio) / ratio against chi-square."""
    assert paired_ratio(450, 0, 0).low == pytest.approx(1 / (1 + chi2.ppf(0.95, 1) / 450))


@given(both=COUNTS, only_first=COUNTS, only_second=COUNTS)
def test_the_interval_of_the_inverse_is_the_inverse_interval(both: int, only_first: int, only_second: int) -> None:
    assume(both + only_first and both + only_second)
    found, inverse = paired_ratio(both, only_first, only_second), paired_ratio(both, only_second, only_first)
    assert 0 < found.low <= found.value <= found.high < np.inf
    assert (found.value, found.low, found.high) == pytest.approx((1 / inverse.value, 1 / inverse.high, 1 / inverse.low))


def test_a_second_accuracy_of_zero_has_no_ratio() -> None:
    with pytest.raises(ValueError, match="no ratio"):
        paired_ratio(0, 3, 0)


def test_more_confidence_is_a_wider_interval() -> None:
    narrow, wide = paired_ratio(900, 20, 35, confidence=0.8), paired_ratio(900, 20, 35, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("counts", [(440, 2, 5), (900, 20, 35), (600, 150, 180)])
def test_agrees_with_the_profile_likelihood(counts: tuple[int, int, int]) -> None:
    """An interval found in another way: where twice the drop of the trinomial log-likelihood is chi-square's 95%."""
    both, only_first, only_second = counts

    def log_likelihood(ratio: float) -> float:
        """Highest over tables whose first share is ``ratio`` of the second; p, q, r: both, only first, only second."""
        p = np.linspace(1e-6, min(1, ratio) - 1e-6, 200_001)  # of images that either got right
        second = (1 + p) / (1 + ratio)  # for p + q + r = 1: first + second = 1 + p
        q, r = ratio * second - p, second - p
        valid = (q > 0) & (r > 0)
        p, q, r = p[valid], q[valid], r[valid]
        return float((both * np.log(p) + only_first * np.log(q) + only_second * np.log(r)).max())

    found = paired_ratio(*counts)
    peak = log_likelihood(found.value)

    def excess(ratio: float) -> float:
        return 2 * (peak - log_likelihood(ratio)) - float(chi2.ppf(0.95, 1))

    width = found.high - found.low
    low = brentq(excess, found.value - 2 * width, found.value, xtol=1e-6)
    high = brentq(excess, found.value, found.value + 2 * width, xtol=1e-6)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.12 * width)


@pytest.mark.parametrize("shares", [(0.93, 0.02, 0.03, 0.02), (0.98, 0.001, 0.006, 0.013), (0.97, 0.0, 0.01, 0.02)])
def test_the_lower_bound_passes_the_truth_in_a_fortieth_of_tries(shares: tuple[float, ...]) -> None:
    """At the worst, also where hardly an image is discordant: what a gate that decides on it relies on."""
    tables = np.random.default_rng(0).multinomial(450, shares, size=3000)
    unique, times = np.unique(tables[:, :3], axis=0, return_counts=True)
    truth = (shares[0] + shares[1]) / (shares[0] + shares[2])
    above = np.array([paired_ratio(*map(int, row)).low > truth for row in unique])
    assert times[above].sum() / times.sum() <= 0.032  # 0.025, and two standard errors of 3000 tries
