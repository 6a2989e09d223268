import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress.quantize.grid import Grid
from compress.quantize.histogram import BINS, Histogram
from compress.registries import RANGES
from compress.targets import Profile, names, profile

UINT8, INT8, SYMMETRIC = Grid(0, 255, False), Grid(-128, 127, False), Grid(-128, 127, True)
GRIDS = (UINT8, INT8, SYMMETRIC)


def seen(*batches: Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


def rounding_error(values: Tensor, grid: Grid, low: float, high: float) -> float:
    scale, zero_point = grid.fit(low, high)
    fake = torch.fake_quantize_per_tensor_affine(values, scale, zero_point, grid.least, grid.most)
    return float((fake - values).double().square().mean())


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


@pytest.mark.parametrize("method", sorted(RANGES))
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_range_lies_within_the_extremes_and_is_not_empty(method: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30))
    tensor = torch.tensor(values)
    low, high = RANGES[method](seen(tensor), data.draw(st.sampled_from(GRIDS)))
    assert min(*values, 0.0) - 1e-6 <= low <= high <= max(*values, 0.0) + 1e-6


@pytest.mark.parametrize(("method", "at_most"), [("percentile", 10), ("entropy", 30), ("mse", 55)])
def test_a_lone_outlier_is_clipped(method: str, at_most: float) -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    values[0] = 60.0
    low, high = RANGES[method](seen(values), UINT8)
    assert 2.5 < high < at_most
    assert -8 < low < -2.5


def test_min_and_max_clip_nothing() -> None:
    assert RANGES["minmax"](seen(torch.tensor([-1.5, 0.0, 99.0])), UINT8) == (-1.5, 99.0)


VALUES = {
    "symmetric": lambda: torch.distributions.Laplace(0.0, 1.0).sample((100_000,)),
    "after a ReLU": lambda: torch.randn(100_000).relu() ** 2,
    "mostly negative": lambda: torch.randn(100_000) - 2.0,
}


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", VALUES)
def test_mse_has_the_least_error_of_all_methods_on_the_integers_that_ship(grid: Grid, kind: str) -> None:
    torch.manual_seed(0)
    values = VALUES[kind]()
    errors = {name: rounding_error(values, grid, *method(seen(values), grid)) for name, method in RANGES.items()}
    assert errors["mse"] <= min(errors.values()) * 1.01


@given(st.floats(-1e4, 1e4, width=32), st.floats(-1e4, 1e4, width=32), st.sampled_from([profile(n) for n in names()]))
def test_a_grid_holds_zero_exactly_and_its_integers_are_the_target_s(a: float, b: float, rule: Profile) -> None:
    grid = Grid.of(rule)
    assert (grid.least, grid.most) == ((0, 255) if rule.activations == "uint8" else (-128, 127))
    assert grid.symmetric == rule.symmetric
    assert grid.levels == 256
    assert float(grid.rounded(torch.zeros(1), min(a, b), max(a, b))) == 0.0


def test_entropy_keeps_a_distribution_that_fits() -> None:
    low, high = RANGES["entropy"](seen(torch.linspace(0, 1, 100_000)), UINT8)
    assert low == 0.0
    assert high > 0.9  # nothing to gain from clipping a uniform distribution
