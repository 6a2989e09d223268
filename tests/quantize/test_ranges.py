import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress.quantize.histogram import BINS, Histogram
from compress.quantize.ranges import METHODS


def seen(*batches: Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


def rounding_error(values: Tensor, low: float, high: float) -> float:
    scale = (high - low) / 255
    rounded = (((values - low) / scale).round().clamp(0, 255) * scale + low).double()
    return float((rounded - values).square().mean())


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40), st.integers(1, 39))
@settings(max_examples=60, deadline=None)
def test_a_histogram_counts_all_values_whatever_the_batches(values: list[float], cut: int) -> None:
    tensor = torch.tensor(values)
    whole, parts = seen(tensor), seen(*(part for part in (tensor[:cut], tensor[cut:]) if len(part)))
    assert (whole.low, whole.high) == (min(values), max(values)) == (parts.low, parts.high)
    assert whole.counts.sum() == len(values) == parts.counts.sum()
    assert whole.width <= parts.width <= 2 * whole.width or whole.width == parts.width
    for histogram in (whole, parts):
        occupied = histogram.centers()[histogram.counts > 0]
        assert all((occupied - value).abs().min() <= histogram.width * 0.51 for value in values)


def test_a_histogram_does_not_grow_with_the_sample() -> None:
    histogram = seen(*(torch.randn(3, 1000) * 10**k for k in range(-3, 6)))
    assert histogram.counts.shape == (BINS,)
    assert histogram.counts.sum() == 9 * 3000


def test_a_large_tensor_is_sampled_but_for_its_extremes() -> None:
    values = torch.zeros(2, 512, 1024)
    values[1, 3, 7] = 5.0
    histogram = seen(values)
    assert histogram.high == 5.0
    assert 0 < histogram.counts.sum() < values.numel()


def test_values_that_are_not_finite_are_noticed() -> None:
    assert math.isinf(seen(torch.tensor([1.0, float("nan")])).high)
    assert math.isinf(seen(torch.ones(2), torch.tensor([float("inf")])).low)


@pytest.mark.parametrize("method", sorted(METHODS))
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_range_lies_within_the_extremes_and_is_not_empty(method: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30))
    tensor = torch.tensor(values)
    low, high = METHODS[method](seen(tensor), data.draw(st.booleans()))
    assert min(*values, 0.0) - 1e-6 <= low <= high <= max(*values, 0.0) + 1e-6


@pytest.mark.parametrize(("method", "at_most"), [("percentile", 10), ("entropy", 30), ("mse", 55)])
def test_a_lone_outlier_is_clipped(method: str, at_most: float) -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    values[0] = 60.0
    low, high = METHODS[method](seen(values), False)
    assert 2.5 < high < at_most
    assert -8 < low < -2.5


def test_min_and_max_clip_nothing() -> None:
    assert METHODS["minmax"](seen(torch.tensor([-1.5, 0.0, 99.0])), False) == (-1.5, 99.0)


@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_has_the_least_error_of_all_methods(symmetric: bool) -> None:
    values = torch.distributions.Laplace(0.0, 1.0).sample((100_000,)) if symmetric else torch.randn(100_000).relu() ** 2
    errors = {}
    for name, method in METHODS.items():
        low, high = method(seen(values), symmetric)
        reach = max(-low, high)
        errors[name] = rounding_error(values, *((-reach, reach) if symmetric else (min(low, 0.0), high)))
    assert errors["mse"] <= min(errors.values()) * 1.05


def test_entropy_keeps_a_distribution_that_fits() -> None:
    low, high = METHODS["entropy"](seen(torch.linspace(0, 1, 100_000)), False)
    assert low == 0.0
    assert high > 0.9  # nothing to gain from clipping a uniform distribution
