from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress.quantize.calibrate import calibrate
from compress.quantize.equalize import equalize
from compress.quantize.fold import fold
from compress.quantize.sensitivity import sqnr

Make = Callable[[str], nn.Module]


def uneven(net: nn.Module) -> nn.Module:
    """Scale the channels of a network's BNs far apart, as training sometimes leaves them."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            spread = torch.logspace(-1.5, 0.5, module.num_features)
            module.weight.data *= spread
            module.bias.data *= spread
    return net


@pytest.mark.parametrize("name", ["functional", "maps", "option A", "option B", "resnext"])
def test_it_is_the_same_function(make: Make, images: list[Tensor], name: str) -> None:
    net = fold(make(name))
    evened = equalize(net, images)
    assert evened is not None
    assert any(not torch.equal(a, b) for a, b in zip(net.parameters(), evened.parameters(), strict=True))
    assert sqnr(net, evened, images[0]) > 80


def test_where_it_changes_the_function_there_is_none(images: list[Tensor]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4 * 28 * 28, 2))
    assert equalize(net.eval(), images) is None


def test_it_is_kept_where_it_helps(make: Make, images: list[Tensor]) -> None:
    net = uneven(make("option B"))
    plain, evened = (
        calibrate(net, images, "ort-x86", method="minmax", correction="none", equalization=wanted)
        for wanted in (False, True)
    )
    assert not torch.equal(
        plain.float_net.get_parameter("conv1.weight"), evened.float_net.get_parameter("conv1.weight")
    )
    x = torch.cat(images)
    assert sqnr(net, evened.fake(), x) > sqnr(net, plain.fake(), x) + 1
