"""Networks with dead channels and layers, and with weights far from 1: they work, or the error names the layer."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.errors import ModelError
from compress.graph.structure import Structure
from compress.models.cifar import CifarResNet
from compress.prune.importance.norm import weight_norm
from compress.prune.importance.taylor import taylor
from compress.prune.losses.curves import Images, Sensitivity
from compress.prune.repair.layerwise import repair
from compress.prune.repair.statistics import Moments, solve
from compress.prune.surgery import cut, verify

SHAPE = (3, 16, 16)
Break = Callable[[nn.Module], None]


def images(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.randn(count, 3, 4, 4, generator=generator), size=16, mode="bilinear")


def no_variance(value: float) -> Break:
    """Statistics of channels that said nothing in training."""

    def change(net: nn.Module) -> None:
        for norm in (net.bn1, net.layer1[1].bn1, net.layer2[0].bn2):
            norm.running_var[:4] = value

    return change


def zero_filters(net: nn.Module) -> None:
    net.layer1[0].conv1.weight[:6] = 0
    net.layer2[1].conv2.weight[:6] = 0


def dead_filters(net: nn.Module) -> None:
    """As training leaves channels that weight decay has killed: no weights, no mean, no variance, no output."""
    zero_filters(net)
    for norm in (net.layer1[0].bn1, net.layer2[1].bn2):
        for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            value[:6] = 0


def dead_norm(bias: float) -> Break:
    """A whole layer whose output is the same on all images: below zero, zero, or above."""

    def change(net: nn.Module) -> None:
        for norm in (net.layer1[1].bn1, net.layer2[0].bn2):
            norm.weight.zero_()
            norm.bias.fill_(bias)
            norm.running_var.zero_()

    return change


def dead_stem(net: nn.Module) -> None:
    """All that follows sees the same on all images."""
    net.bn1.weight.zero_()
    net.bn1.bias.fill_(0.3)


def zero_classifier(net: nn.Module) -> None:
    net.linear.weight.zero_()


def scaled(factor: float) -> Break:
    """Weights of that size, and the statistics that go with them."""

    def change(net: nn.Module) -> None:
        for conv, norm in ((net.layer1[1].conv1, net.layer1[1].bn1), (net.layer2[0].conv2, net.layer2[0].bn2)):
            conv.weight *= factor
            norm.running_mean *= factor
            norm.running_var *= min(factor**2, 1e30)

    return change


def tiny_outputs(net: nn.Module) -> None:
    """The outputs of a layer are 1e-22: their squares are no float32."""
    net.layer1[1].bn1.weight *= 1e-22
    net.layer1[1].bn1.bias *= 1e-22


BREAKS: dict[str, Break] = {
    "variance 0": no_variance(0.0),
    "variance 1e-40": no_variance(1e-40),
    "filters of zeros": zero_filters,
    "dead filters": dead_filters,
    "a layer below zero": dead_norm(-0.3),
    "a layer of zeros": dead_norm(0.0),
    "a constant layer": dead_norm(0.3),
    "a constant network": dead_stem,
    "a classifier of zeros": zero_classifier,
    "weights of 1e10": scaled(1e10),
    "weights of 1e-30": scaled(1e-30),
    "outputs of 1e-22": tiny_outputs,
}


@torch.no_grad()
def broken(how: str, option: Literal["A", "B"] = "B") -> nn.Module:
    """A network with plausible statistics, and one thing wrong."""
    torch.manual_seed(0)
    net = CifarResNet(14, option=option).train()
    for seed in range(5):
        net(images(8, seed))
    BREAKS[how](net)
    return net.eval()


@pytest.mark.parametrize(
    ("option", "how"), [*(("B", how) for how in BREAKS), ("A", "dead filters"), ("A", "a constant network")]
)
def test_a_network_with_dead_parts_has_finite_losses_and_is_repaired(option: Literal["A", "B"], how: str) -> None:
    net = broken(how, option)
    structure = Structure.of(net, SHAPE)
    coupling = structure.coupling
    sample = [images(4, seed) for seed in range(4)]
    sensitivity = Sensitivity(net, structure, Images(sample[1:], sample[:1]))
    curves = dict(sensitivity.curves({group.name: [group.units // 2] for group in coupling}))
    for group in coupling:
        assert sorted(curves[group.name].order) == list(range(group.units))
    losses = [loss for curve in curves.values() for loss in curve.loss] + list(sensitivity.removals().values())
    assert all(0 <= loss < float("inf") for loss in losses)

    kept, removed = {name: curve.kept(curve.units[0]) for name, curve in curves.items()}, structure.named(["layer1.1"])
    new = repair(net, structure, kept, ["layer1.1"], sample)
    assert all(value.isfinite().all() for value in new.state_dict().values())
    pruned = cut(new, coupling, kept, removed)
    verify(new, pruned, coupling, kept, images(2), removed)


@pytest.mark.parametrize("how", BREAKS)
def test_scores_of_a_network_with_dead_parts_are_finite(how: str) -> None:
    net = broken(how)
    coupling = Structure.of(net, SHAPE).coupling
    for scores in (weight_norm(net, coupling), taylor(net, coupling, [(images(4), torch.arange(4))])):
        assert all(np.isfinite(score).all() for score in scores.values())


def test_dead_channels_go_first() -> None:
    net = broken("dead filters")
    name = "layer1.0.conv1"
    (_, curve), *_ = Sensitivity(net, Structure.of(net, SHAPE), Images([images(16)], [images(8)])).curves({name: [4]})
    assert set(curve.order[-6:]) == set(range(6))


def test_weights_that_a_norm_makes_infinite_are_an_error_that_names_the_layer() -> None:
    net = broken("variance 0")
    net.layer1[0].bn2.eps = 0.0
    net.layer1[0].bn2.running_var.zero_()
    structure, sample = Structure.of(net, SHAPE), [images(4, seed) for seed in range(4)]
    with pytest.raises(ModelError, match=r"output of 'layer1\.0\.bn2'"):
        Sensitivity(net, structure, Images(sample[1:], sample[:1]))
    with pytest.raises(ModelError, match=r"'layer1\.0\.conv2'"):
        repair(net, structure, {"layer1.0.conv1": range(4)}, [], sample)


def test_inputs_that_do_not_vary_leave_the_old_weights() -> None:
    moments = Moments()
    for value in (0.1, 0.1):
        moments.add(torch.full((50, 3), value), torch.randn(50, 2))
    old = torch.randn(3, 2).double()
    assert moments.statistics().covariance.eq(0).all()
    torch.testing.assert_close(solve(moments.statistics(), old, 1e-3), old, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(moments.second(about_zero=True) * moments.unit**2, torch.full((3, 3), 0.01))


@pytest.mark.parametrize("size", [1e-22, 1e-10, 1.0, 1e10])
def test_moments_do_not_depend_on_the_size_of_inputs(size: float) -> None:
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    moments = Moments()
    moments.add(x * size, x[:, :1])
    seen = moments.statistics()
    expected = torch.cov(x.double().T, correction=0)
    torch.testing.assert_close(seen.covariance / size**2, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen.cross / size, expected[:, :1], rtol=1e-4, atol=1e-4)
