from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.errors import ConfigError
from compress.frontend.raising import raised
from compress.graph.structure import Structure
from compress.models.registry import build
from compress.prune.surgery import cut
from compress.quantize.calibrate import calibrate
from compress.quantize.fold import fold
from compress.quantize.placement import Range, place
from compress.quantize.quantizer import Activation

Make = Callable[[str], nn.Module]
ends = st.floats(-1e4, 1e4, width=32)


ONE = raised(nn.Sequential(nn.Conv2d(1, 1, 1)), (1, 4, 4))


def one(target: str, low: float, high: float) -> Activation:
    return place(ONE, target, [Range("input_1", None, low, high)], {}).activations[0]


@given(ends, ends)
def test_uint8_covers_the_range_and_holds_zero_exactly(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    q = one("ort-x86", low, high)
    assert 0 <= q.zero_point <= 255
    assert q.scale > 0
    bottom, top = q.range
    slack = 0.51 * q.scale
    assert bottom - slack <= min(low, 0.0)
    assert top + slack >= max(high, 0.0)


@given(ends, ends)
def test_int8_is_symmetric_and_covers_the_range(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    q = one("tensorrt", low, high)
    assert (q.zero_point, q.low, q.high) == (0, -128, 127)
    assert q.scale * 127 >= max(-low, high, 0.0) * (1 - 1e-6)


def test_a_tensor_that_is_never_negative_has_zero_point_0() -> None:
    assert one("ort-x86", 0.0, 3.0).zero_point == 0


class Block(nn.Module):
    def __init__(self, *, project: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.project = nn.Conv2d(4, 4, 1) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.two(torch.relu(self.one(x))) + self.project(x))


def edges(target: str, *, project: bool) -> set[str]:
    sources = ["x", "one", "relu", "two", *(["project"] if project else []), "relu_1"]
    ranges = [Range(source, None, -1.0, 1.0) for source in sources]
    return {a.source for a in place(raised(Block(project=project), (4, 8, 8)), target, ranges, {}).activations}


@pytest.mark.parametrize("project", [False, True])
def test_tensorrt_leaves_the_convolution_before_the_add_alone_and_onnxruntime_does_not(project: bool) -> None:
    assert "two" in edges("ort-x86", project=project)
    assert edges("ort-x86", project=project) - edges("tensorrt", project=project) == {"two"}


def test_a_tensor_with_other_users_stays_quantized_for_these() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(x)
            return self.two(y) + (y + x)

    placed = place(raised(Two(), (4, 8, 8)), "tensorrt", [Range("one", None, -1.0, 1.0)], {})
    assert [(a.source, a.user) for a in placed.activations] == [("one", "two")]


def test_what_a_relu_loses_is_not_given_any_step() -> None:
    ranges = [Range("x", None, 0.0, 2.0), Range("two", None, -10.0, 3.0)]
    placed = {a.source: a for a in place(raised(Block(project=False), (4, 8, 8)), "ort-x86", ranges, {}).activations}
    assert placed["two"].range == pytest.approx((-2.0, 3.0), abs=0.02)


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_beside_an_operand_that_is_not_quantized_nothing_is_cut_off(target: str) -> None:
    ranges = [Range("x", None, -10.0, 2.0), Range("two", None, -3.0, 3.01)]
    placed = {a.source: a for a in place(raised(Block(project=False), (4, 8, 8)), target, ranges, {}).activations}
    assert "two" not in placed  # fused with the add: nothing says how large it may become
    assert placed["x"].range[0] == pytest.approx(-10.0, abs=0.1)


def test_a_dead_channel_keeps_a_scale_at_which_its_bias_fits_into_int32() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        net[0].weight[1] = 0
        net[0].bias.fill_(3.0)
    magnitudes = {"0": net[0].weight.abs().amax((1, 2, 3))}
    placed = place(raised(net, (3, 8, 8)), "ort-x86", [Range("input_1", None, -1.0, 1.0)], magnitudes)
    for scale in placed.weights[0].scale:
        assert 3.0 / (scale * placed.activations[0].scale) < 2**31


def test_an_unknown_target_names_the_known_ones(make: Make) -> None:
    with pytest.raises(ConfigError, match="openvino, ort-arm, ort-x86, tensorrt"):
        place(fold(make("functional")), "tpu", [], {})


def test_a_max_pool_with_several_readers_is_quantized_before_it() -> None:
    net = raised(build("resnet18", 10).eval(), (3, 32, 32))
    structure = Structure.of(net, (3, 32, 32))
    pruned = cut(net, structure.coupling, {}, structure.named(["layer1.0", "layer1.1"]))  # a projection block follows
    quantized = calibrate(pruned, [torch.randn(2, 3, 32, 32)], "ort-x86", correction="none")
    assert ("relu", None) in {(a.source, a.user) for a in quantized.quantizers.activations}
    assert not [a for a in quantized.quantizers.activations if a.source == "maxpool"]
