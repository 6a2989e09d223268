import pytest
import torch
from torch import nn

from compress.models.cost import Cost, count, layer_macs
from compress.models.registry import build


@pytest.mark.parametrize(
    ("arch", "gmacs", "mparams"),
    [("resnet18", 1.814, 11.690), ("resnet50", 4.089, 25.557), ("resnext50_32x4d", 4.230, 25.029)],
)
def test_counts_are_the_published_ones(arch: str, gmacs: float, mparams: float) -> None:
    cost = count(build(arch), (3, 224, 224))
    assert cost.macs / 1e9 == pytest.approx(gmacs, abs=0.001)
    assert cost.params / 1e6 == pytest.approx(mparams, abs=0.001)


def test_a_layer_that_runs_twice_counts_twice() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    assert count(nn.Sequential(conv, conv), (8, 4, 4)) == Cost(2 * 16 * 9 * 64, 9 * 64)
    assert layer_macs(nn.Sequential(conv, conv), (8, 4, 4))["0"] == 2 * 16 * 9 * 64


def test_layers_add_up_to_the_whole() -> None:
    net = build("cifar_resnet20")
    leaves = {name for name, module in net.named_modules() if not list(module.children())}
    macs = layer_macs(net, (3, 32, 32))
    assert sum(value for name, value in macs.items() if name in leaves) == count(net, (3, 32, 32)).macs


def test_counting_leaves_the_net_alone_and_needs_no_tracing() -> None:
    class Branching(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if len(x) else x

    net = Branching(3, 4, 1).train()
    assert count(net, (3, 2, 2)) == Cost(48, 16)
    assert net.training
    assert net.weight.device.type == "cpu"
