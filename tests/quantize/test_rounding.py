import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.quantize.rounding import gptq, round_layer, round_to_nearest


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
    ours, nearest = gptq(weight, scale, x.T @ x / len(x)), round_to_nearest(weight, scale)
    assert on_grid(ours, scale)

    def error(rounded: Tensor) -> float:
        return float(((weight - rounded) @ x.T).square().sum())

    assert error(ours) <= 1.001 * error(nearest)


def test_inputs_that_are_always_zero_or_copies_do_no_harm() -> None:
    x = torch.randn(100, 4)
    x = torch.cat([x, torch.zeros(100, 2), x[:, :1]], 1)
    weight = torch.randn(3, 7)
    scale = weight.abs().amax(1) / 127
    assert on_grid(gptq(weight, scale, x.T @ x / 100), scale)


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
