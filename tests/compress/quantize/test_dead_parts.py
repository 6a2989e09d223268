"""Quantizing networks with dead channels and layers, and with weights far from 1."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress.models.cifar import CifarResNet
from compress.quantize.calibrate import Calibrated, calibrate
from compress.quantize.quantizer import TINY
from compress.registries import RANGES


def no_variance(net: nn.Module) -> None:
    net.layer1[1].bn1.running_var[:4] = 0
    net.layer2[0].bn2.running_var[:4] = 1e-40


def dead_filters(net: nn.Module) -> None:
    """As training leaves channels that weight decay has killed."""
    net.layer1[0].conv1.weight[:6] = 0
    for value in (net.layer1[0].bn1.running_mean, net.layer1[0].bn1.running_var, net.layer1[0].bn1.weight):
        value[:6] = 0


def below_zero(net: nn.Module) -> None:
    net.layer1[1].bn1.weight.zero_()
    net.layer1[1].bn1.bias.fill_(-0.3)


def zeros(net: nn.Module) -> None:
    for norm in (net.layer1[1].bn1, net.layer2[0].bn2):
        norm.weight.zero_()
        norm.bias.zero_()


def constant(net: nn.Module) -> None:
    net.bn1.weight.zero_()
    net.bn1.bias.fill_(0.3)


def large(net: nn.Module) -> None:
    net.layer1[1].conv1.weight *= 1e10
    net.layer1[1].bn1.running_mean *= 1e10
    net.layer1[1].bn1.running_var *= 1e20


def tiny(net: nn.Module) -> None:
    net.layer1[1].conv1.weight *= 1e-30
    net.layer2[0].bn1.weight *= 1e-22
    net.layer2[0].bn1.bias *= 1e-22


BREAKS = [no_variance, dead_filters, below_zero, zeros, constant, large, tiny]


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(4, 3, 16, 16, generator=generator) for _ in range(2)]


@torch.no_grad()
def broken(*how: Callable[[nn.Module], None]) -> nn.Module:
    torch.manual_seed(0)
    net = CifarResNet(14, option="B").train()
    for x in images():
        net(x)
    for change in how:
        change(net)
    return net.eval()


def check(calibrated: Calibrated, net: nn.Module) -> None:
    """Its values are finite, and it says nearly what the float network says."""
    assert all(value.isfinite().all() for value in calibrated.net.state_dict().values())
    scales = [s for w in calibrated.quantizers.weights for s in w.scale] + [
        a.scale for a in calibrated.quantizers.activations
    ]
    assert all(TINY <= scale < float("inf") for scale in scales)
    with torch.no_grad():
        expected, found = (each(images()[0]) for each in (net, calibrated.fake()))
    assert (found - expected).norm() <= 0.1 * expected.norm()


@pytest.mark.parametrize("how", BREAKS)
def test_a_network_with_dead_parts_is_quantized(how: Callable[[nn.Module], None]) -> None:
    net = broken(how)
    check(calibrate(net, images(), "ort-x86", equalization=how is zeros), net)


@pytest.mark.parametrize(("method", "target"), [*((method, "ort-x86") for method in RANGES), ("mse", "tensorrt")])
def test_every_method_has_a_range_for_what_never_varies(method: str, target: str) -> None:
    net = broken(constant, zeros)
    check(calibrate(net, images(), target, method=method, correction="bias"), net)
