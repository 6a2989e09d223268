from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress.errors import ModelError
from compress.quantize.fold import fold
from compress.quantize.graph import Unrolled, trace

Make = Callable[[str], nn.Module]


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


@pytest.mark.parametrize("name", ["functional", "option A", "option B", "resnet18", "resnext"])
def test_a_folded_net_has_no_bn_and_computes_the_same(make: Make, name: str, images: list[Tensor]) -> None:
    net = make(name)
    folded = fold(net)
    assert norms(net) > 0
    assert norms(folded) == 0
    torch.testing.assert_close(folded(images[0]), net(images[0]), rtol=1e-3, atol=1e-4)


def test_a_bn_after_no_convolution_stays(make: Make, images: list[Tensor]) -> None:
    net = make("pre-activation")
    folded = fold(net)
    assert norms(folded) == 1
    torch.testing.assert_close(folded(images[0]), net(images[0]))


def test_a_convolution_that_others_read_too_is_not_folded() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            z: Tensor = self.norm(y) + y
            return z

    assert norms(fold(Forked())) == 1


def test_folding_leaves_the_given_net_alone(make: Make) -> None:
    net = make("option B")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    fold(net)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", ["functional", "maps", "option A", "resnet18"])
def test_the_unrolled_net_computes_the_same(make: Make, name: str, images: list[Tensor]) -> None:
    folded = fold(make(name))
    ours, theirs = Unrolled(trace(folded))(images[0]), folded(images[0])
    for a, b in zip(*(x if isinstance(x, list) else [x] for x in (ours, theirs)), strict=True):
        assert torch.equal(a, b)


def test_control_flow_on_values_is_an_error_that_says_so() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match=r"cannot trace Branching.forward"):
        trace(Branching())


def test_two_inputs_are_an_error() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(ModelError, match=r"2 inputs \(x, y\)"):
        trace(Two())
