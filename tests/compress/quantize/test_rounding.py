import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.quantize.pairs import overflowing, pairs
from compress.quantize.quantizer import WEIGHT_HIGH, Weight
from compress.quantize.rounding import fitting_reach, gptq, nearest, quantize_weight, round_layer, round_to_nearest


def on_grid(weight: Tensor, scale: Tensor) -> bool:
    steps = weight / scale.reshape(-1, *[1] * (weight.dim() - 1))
    return bool(torch.allclose(steps, steps.round(), atol=1e-3) and steps.abs().max() <= 127.01)


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(2, 40))
@settings(max_examples=30, deadline=None)
def test_rounding_for_the_output_is_never_worse_than_rounding_to_nearest(seed: int, outputs: int, inputs: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(inputs, inputs, generator=generator)  # correlated inputs, as neighbouring pixels are
    x = torch.randn(400, inputs, generator=generator) @ mixed + 1.0
    weight = torch.randn(outputs, inputs, generator=generator)
    scale = weight.abs().amax(1) / 7  # coarse, so that there is something to gain
    closest, alone = round_to_nearest(weight, scale), [[]] * inputs
    ours = gptq(weight, scale, x.T @ x / len(x), closest, alone)
    assert on_grid(ours, scale)

    def error(rounded: Tensor) -> float:
        return float(((weight - rounded) @ x.T).square().sum())

    assert error(ours) <= 1.001 * error(closest)


def test_inputs_that_are_always_zero_or_copies_do_no_harm() -> None:
    x = torch.randn(100, 4)
    x = torch.cat([x, torch.zeros(100, 2), x[:, :1]], 1)
    weight = torch.randn(3, 7)
    scale = weight.abs().amax(1) / 127
    assert on_grid(gptq(weight, scale, x.T @ x / 100, round_to_nearest(weight, scale), [[]] * 7), scale)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=2, bias=False),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv2d(4, 6, (1, 3), padding="same"),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.Linear(4, 6),
    ],
    ids=str,
)
def test_every_kind_of_layer_comes_closer_to_its_float_output(layer: nn.Conv2d | nn.Linear) -> None:
    torch.manual_seed(0)
    layer.reset_parameters()
    x = torch.rand(8, 4, 12, 12) if isinstance(layer, nn.Conv2d) else torch.rand(99, 4)
    scale = layer.weight.detach().flatten(1).abs().amax(1) / 15
    rounded = round_layer(layer, scale, x, torch.Generator().manual_seed(0))
    assert on_grid(rounded, scale)
    with torch.no_grad():
        expected, errors = layer(x), []
        for weight in (rounded, round_to_nearest(layer.weight, scale)):
            errors.append(
                (torch.func.functional_call(layer, {"weight": weight}, (x,)) - expected).square().sum().item()
            )
    assert errors[0] < errors[1]


# --- pairs of products that must fit into int16 ---------------------------------------------------------------------

SHAPES = [
    (1, 1, 1),
    (1, 3, 3),
    (2, 1, 1),
    (3, 7, 7),
    (4, 3, 3),
    (5, 3, 3),
    (6, 1, 3),
    (7, 1, 1),
    (8, 3, 3),
    (9,),
    (10,),
]


def weights(shape: tuple[int, ...], seed: int) -> Tensor:
    """Four output channels; some of one sign, as a blur is, which is what makes pairs overflow."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, *shape, generator=generator)
    weight[1], weight[2] = weight[1].abs(), -weight[2].abs().sqrt()
    return weight


def overflows(weight: Tensor, scale: Tensor) -> bool:
    """The kernel's own arithmetic with the worst activations, 0 or 255 each: does any sum of two products not fit?"""
    steps = (weight / scale.reshape(-1, *[1] * (weight.dim() - 1))).round().flatten(1).to(torch.int64)
    for chosen in pairs(tuple(weight.shape[1:])):
        for first in (0, 255):
            for second in (0, 255):
                a, b = steps[:, chosen].unbind(2)
                sums = first * a + second * b
                if bool(((sums > 2**15 - 1) | (sums < -(2**15))).any()):
                    return True
    return False


@given(st.sampled_from(SHAPES), st.integers(0, 10_000))
@settings(max_examples=80, deadline=None)
def test_no_pair_overflows_however_weights_are_rounded(shape: tuple[int, ...], seed: int) -> None:
    weight = weights(shape, seed)
    magnitude = weight.abs().flatten(1).amax(1)
    narrow, wide = magnitude / WEIGHT_HIGH, fitting_reach(weight, magnitude) / WEIGHT_HIGH
    layer: nn.Conv2d | nn.Linear = nn.Linear(shape[0], 4) if len(shape) == 1 else nn.Conv2d(shape[0], 4, shape[1:])
    layer.weight.data.copy_(weight)
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand((64, *shape) if len(shape) == 1 else (8, shape[0], 9, 9), generator=generator)
    for scale in (narrow, wide):
        for rounded in (
            round_to_nearest(weight, scale, pairs_fit=True),
            round_layer(layer, scale, inputs, generator, pairs_fit=True),
        ):
            assert not overflows(rounded, scale)
            assert on_grid(rounded, scale)
        integers = quantize_weight(Weight("layer", tuple(scale.tolist()), pairs_fit=True), weight)
        assert not overflowing(integers.numpy()).any()


@given(st.integers(-200, 200), st.integers(-200, 200), st.floats(-0.49, 0.49), st.floats(-0.49, 0.49))
def test_a_pair_is_rounded_to_the_nearest_that_fits(a: int, b: int, x: float, y: float) -> None:
    steps = torch.tensor([[a + x, b + y]])
    found = nearest(steps, True)
    whole = torch.arange(-WEIGHT_HIGH, WEIGHT_HIGH + 1.0)
    error = (whole[:, None] - steps[0, 0]) ** 2 + (whole[None, :] - steps[0, 1]) ** 2
    error[(whole[:, None] + whole[None, :]).abs() > 128] = torch.inf
    assert float(((found - steps) ** 2).sum()) == pytest.approx(float(error.min()), rel=1e-4, abs=1e-4)


@given(st.sampled_from(SHAPES), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_what_fits_stays_as_it_is(shape: tuple[int, ...], seed: int) -> None:
    once = nearest(weights(shape, seed) * 60, True)
    assert torch.equal(nearest(once, True), once)


@pytest.mark.parametrize("shape", [(32, 3, 3), (33, 3, 3), (256, 1, 1), (512,)], ids=str)
def test_fitting_pairs_costs_little_where_half_the_range_costs_four_times(shape: tuple[int, ...]) -> None:
    weight = torch.randn(64, *shape, generator=torch.Generator().manual_seed(0))
    magnitude = weight.abs().flatten(1).amax(1)
    reach = fitting_reach(weight, magnitude)
    assert bool((reach >= magnitude).all())

    def error(reach: Tensor, pairs_fit: bool) -> float:
        return float((round_to_nearest(weight, reach / WEIGHT_HIGH, pairs_fit) - weight).square().sum())

    exact = error(magnitude, False)
    assert error(reach, True) < 2.3 * exact
    assert error(2 * magnitude, False) > 3.5 * exact
