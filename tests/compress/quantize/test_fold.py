from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress.errors import ModelError
from compress.frontend.raising import raised
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


def test_a_bn_after_no_convolution_becomes_a_depthwise_one(make: Make, images: list[Tensor]) -> None:
    net = make("pre-activation")
    folded = fold(net)
    assert norms(folded) == 0
    conv = folded.get_submodule("norm")
    assert isinstance(conv, nn.Conv2d)
    assert (conv.groups, conv.kernel_size) == (8, (1, 1))
    torch.testing.assert_close(folded(images[0]), net(images[0]), rtol=1e-3, atol=1e-4)


class Forked(nn.Module):
    """A convolution that two readers have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z: Tensor = self.norm(y) + y
        return z


class Twice(nn.Module):
    """A block that is called twice, its BN too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.norm(self.conv(x)).relu()
        return x


class Frozen(nn.BatchNorm2d):
    """A BN of a type of its own."""


@pytest.mark.parametrize(
    ("net", "kinds"),
    [
        (Forked(), {"conv": nn.Conv2d, "norm": nn.Conv2d}),
        (Twice(), {"conv": nn.Conv2d, "norm": nn.Identity}),
        (nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), Frozen(4)), {"0": nn.Conv2d, "1": nn.Identity}),
        (nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4)), {"0": nn.ConvTranspose2d, "1": nn.Identity}),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(192, 4, bias=False), nn.BatchNorm1d(4)),
            {"1": nn.Linear, "2": nn.Identity},
        ),
    ],
)
def test_what_each_bn_becomes(net: nn.Module, kinds: dict[str, type[nn.Module]]) -> None:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            assert module.running_mean is not None
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    images = torch.randn(2, 3, 8, 8)
    folded = fold(raised(net.eval(), (3, 8, 8)))
    assert {name: type(folded.get_submodule(name)) for name in kinds} == kinds
    torch.testing.assert_close(folded(images), net(images))


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
        raised(Branching(), (3, 8, 8))


def test_two_inputs_are_an_error() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(ModelError, match=r"2 inputs \(x, y\)"):
        raised(Two(), (3, 8, 8))
