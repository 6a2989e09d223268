from pathlib import Path

import pytest
import torch
from torch import nn

from calibration.preprocess import Preprocess
from compress.errors import CheckpointError, ModelError
from compress.models.model import Model, load_model, save_model
from compress.models.registry import ARCHITECTURES, build
from compress.models.shapes import describe, reshape


def small(arch: str = "cifar_resnet20") -> Model:
    torch.manual_seed(0)
    return Model(build(arch, 3).eval(), arch, Preprocess(32), ("a", "b", "c"))


@pytest.mark.parametrize("arch", ["cifar_resnet20", "cifar_resnet20_b", "resnet18"])
def test_a_saved_model_is_the_same_model(tmp_path: Path, arch: str) -> None:
    model = small(arch)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert (loaded.arch, loaded.preprocess, loaded.classes) == (model.arch, model.preprocess, model.classes)
    assert torch.equal(loaded.net(model.example(2)), model.net(model.example(2)))
    assert {path.name for path in tmp_path.iterdir()} == {"model.json", "model.safetensors"}


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_every_family_takes_any_class_count(arch: str) -> None:
    with torch.device("meta"):
        net = build(arch, 37)
    linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert linear[-1].out_features == 37


def test_reshape_restores_narrow_layers_and_folded_bn() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Identity(), nn.Linear(5, 2))
    fresh = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Linear(8, 2))
    reshape(fresh, describe(net))
    assert describe(fresh) == describe(net)


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    save_model(small(), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"cannot load .*model\.safetensors"):
        load_model(tmp_path)


def test_an_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"did you mean 'resnet50'"):
        build("resnet5O")


def test_a_users_factory_is_found_by_its_dotted_path() -> None:
    net = build("compress.models.cifar:CifarResNet", 4, {"depth": 20, "option": "B"})
    assert describe(net)["linear"]["out_features"] == 4


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("no_such_package:build", "cannot import 'no_such_package'"),
        ("compress.models.cifar:Nothing", "has no 'Nothing'"),
        ("compress.models.cifar:CifarResNet", "failed: TypeError"),
        ("builtins:dict", "returned a dict"),
    ],
)
def test_a_factory_that_does_not_work_says_why(arch: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(arch)
