"""The ratio of two accuracies that were measured on the same images.

``intervals.paired_difference`` has the difference. A gate such as "at least 99% of the float network's accuracy" needs
the ratio. Its interval does not follow from that of the difference, because the other accuracy is an estimate too.
"""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.stats import norm

from benchmarks.statistics.intervals import CONFIDENCE, Interval

_FAR = 1e8  # no interval of a ratio reaches that far from the ratio


def paired_ratio(both: int, only_first: int, only_second: int, *, confidence: float = CONFIDENCE) -> Interval:
    """First accuracy over second, on the same images, with the asymptotic score interval.

    The interval holds the ratios that the score test of Nam and Blackwelder 2002, Statistics in Medicine 21:689, does
    not reject; Tang, Tang and Chan 2003, Statistics in Medicine 22:1217, found that it keeps its level. Near a ratio of
    1 with few discordant images, where gates decide, its lower bound is conservative. The interval of Bonett and Price
    2006 is simpler, but its lower bound is too high there in about 6% of all cases instead of 2.5%.

    Args:
        both, only_first, only_second: images that both, only the first, or only the second classified correctly.

    Raises:
        ValueError: the second accuracy is zero, so there is no ratio.

    >>> [round(x, 4) for x in paired_ratio(59, 6, 16)]  # Cavo et al. 2012, the example of Fagerland et al. 2017
    [0.8667, 0.7476, 0.9876]
    """
    first, second = both + only_first, both + only_second
    if second == 0:
        raise ValueError("the second accuracy is zero: there is no ratio")
    z = float(norm.ppf((1 + confidence) / 2))
    counts = (both, only_first, only_second)
    value = first / second
    if first == 0:
        return Interval(0.0, 0.0, float(brentq(lambda ratio: _score(ratio, *counts) + z, 1 / _FAR, _FAR)))
    # On a logarithmic scale, where the two ends are about as far away.
    middle, reach = math.log(value), math.log(_FAR)
    low = brentq(lambda log_ratio: _score(math.exp(log_ratio), *counts) - z, middle - reach, middle)
    high = brentq(lambda log_ratio: _score(math.exp(log_ratio), *counts) + z, middle, middle + reach)
    return Interval(value, math.exp(low), math.exp(high))


def _score(ratio: float, both: int, only_first: int, only_second: int) -> float:
    """How many standard errors the first accuracy is above ``ratio`` times the second, were that the true ratio.

    The error is that of the likeliest table with this ratio. Let its discordant cells, as shares of the images that
    either got right, be b and c: then c = ratio b + 1 - ratio, and the likelihood's derivative is quadratic in b.
    """
    union = both + only_first + only_second
    first, second = (both + only_first) / union, (both + only_second) / union
    only1, only2, square = only_first / union, only_second / union, ratio * ratio
    root = math.sqrt((first - square * second) ** 2 + 4 * square * only1 * only2)
    b = (square * (second + 2 * only1) - first + root) / (2 * ratio * (1 + ratio))
    variance = ratio * (b + max(ratio * b + 1 - ratio, 0.0))
    distance = first - ratio * second
    if variance <= 0:  # both answer alike, and the ratio is 1
        return 0.0
    return math.sqrt(union / variance) * distance
