from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.rivals.peers.torch_pruning import SETTINGS, Setting, evidence, prune, recalibrate
from calibration.preprocess import Preprocess
from compress.errors import BackendAbsent, ConfigError, ModelError
from compress.models.cost import count
from compress.models.model import Model, load_model, save_model
from compress.models.registry import build

SHAPE = (3, 32, 32)


@pytest.fixture(scope="module")
def labelled() -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    return [(x[:5], torch.arange(5)), (x[5:], torch.arange(5, 8))]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return build("cifar_resnet20_b", 10).eval()


@pytest.mark.parametrize("setting", map(Setting.parse, ["local-l2-8", "global-taylor-16", "isomorphic-obd-4"]), ids=str)
def test_every_way_narrows_the_net_to_its_multiple(
    setting: Setting, net: nn.Module, labelled: list[tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    pytest.importorskip("torch_pruning")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pruned = prune(net, SHAPE, setting, 0.4, evidence(net, setting.criterion, labelled))
    recalibrate(pruned, [x for x, _ in labelled])
    assert count(pruned, SHAPE).macs < 0.8 * count(net, SHAPE).macs
    narrowed = [
        new.out_channels
        for old, new in zip(net.modules(), pruned.modules(), strict=True)
        if isinstance(old, nn.Conv2d) and isinstance(new, nn.Conv2d) and new.out_channels < old.out_channels
    ]
    assert narrowed
    assert all(width % setting.round_to == 0 for width in narrowed)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    save_model(Model(pruned, "cifar_resnet20_b", Preprocess(32), tuple("0123456789")), tmp_path)
    x = labelled[0][0]
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path).net(x), pruned(x))
        assert pruned(x).shape == (5, 10)


def test_padded_streams_stay_whole() -> None:
    pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    net = build("cifar_resnet20", 10)
    pruned = prune(net, SHAPE, Setting("local", "l2", 4), 0.5, {})
    widths = {name: m.out_channels for name, m in pruned.named_modules() if isinstance(m, nn.Conv2d)}
    dense = {name: m.out_channels for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    inner = {name for name in dense if name.startswith("layer") and name.endswith("conv1")}
    assert {name for name in dense if widths[name] == dense[name] // 2} == inner
    assert all(widths[name] == dense[name] for name in dense.keys() - inner)


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def test_taylor_weighs_with_the_gradient_of_the_mean_loss(
    small: nn.Module, labelled: list[tuple[Tensor, Tensor]]
) -> None:
    found = evidence(small, "taylor", labelled)
    x, y = (torch.cat(part) for part in zip(*labelled, strict=True))
    (expected,) = torch.autograd.grad(F.cross_entropy(small(x), y), [small.get_parameter("0.weight")])
    torch.testing.assert_close(found["0.weight"], expected)
    assert found.keys() == dict(small.named_parameters()).keys()


def test_obd_averages_the_squares_of_all_images(small: nn.Module, labelled: list[tuple[Tensor, Tensor]]) -> None:
    found = evidence(small, "obd", labelled)["0.weight"]
    each = [evidence(small, "taylor", [(x[i : i + 1], y[i : i + 1])]) for x, y in labelled for i in range(len(x))]
    torch.testing.assert_close(found, torch.stack([one["0.weight"].square() for one in each]).mean(0))
    with pytest.raises(ModelError, match="at least one"):
        evidence(small, "obd", [])


def test_recalibrated_statistics_are_those_of_the_images() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2, momentum=0.3)).eval()
    x = 3 + 2 * torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    recalibrate(net, [x, x])
    torch.testing.assert_close(net[0].running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(net[0].running_var, x.var((0, 2, 3)))
    assert (net[0].momentum, net.training, net[0].training) == (0.3, False, False)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_settings_read_as_they_are_written(setting: Setting) -> None:
    assert Setting.parse(str(setting)) == setting


@pytest.mark.parametrize("text", ["", "local", "local-l2", "local-l1-8", "lokal-l2-8", "local-l2-0", "local-l2-8-8"])
def test_settings_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a way to prune"):
        Setting.parse(text)


def test_net_that_the_library_cannot_follow_is_told(net: nn.Module) -> None:
    pytest.importorskip("torch_pruning")
    with pytest.raises(ModelError, match=r"Torch-Pruning \(local-l2-8"):
        prune(net, (1, 32, 32), Setting("local", "l2", 8), 0.5, {})


def test_absent_library_says_how_to_get_it(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(BackendAbsent, match="not installed") as caught:
        prune(net, SHAPE, Setting("local", "l2", 8), 0.5, {})
    assert caught.value.exit_code == 5
