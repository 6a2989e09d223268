import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save_model as save_under_one_name
from torch import nn

from calibration.preprocess import Preprocess
from compress.config import ModelConfig
from compress.errors import CheckpointError, ModelError
from compress.frontend.raising import raised
from compress.graph.groups import couple
from compress.models.checkpoint import load_trained
from compress.models.model import Model, load_model, save_model
from compress.models.registry import ARCHITECTURES, build
from compress.models.shapes import describe, replace_module, reshape
from compress.prune.surgery import cut
from compress.quantize.fold import fold


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


class Aliased(nn.Module):
    """Layers with two names each: alone, and in ``features``, by which the forward calls them; and a whole block."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.block = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU())
        self.features = nn.Sequential(self.conv1, self.bn1, nn.ReLU(), self.block, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(24, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x).flatten(1))  # type: ignore[no-any-return]


@pytest.fixture
def aliased() -> Model:
    torch.manual_seed(0)
    net = raised(Aliased().eval(), (3, 16, 16))
    return Model(net, f"{__name__}:Aliased", Preprocess(16), ("a", "b", "c"))


def pruned(model: Model) -> Model:
    coupling = couple(model.net, model.preprocess.shape)
    return model.clone(cut(model.net, coupling, {group.name: range(8) for group in coupling}))


@pytest.mark.parametrize("change", [lambda m: m, pruned, lambda m: m.clone(fold(m.net)), lambda m: pruned(pruned(m))])
def test_a_net_with_aliased_layers_round_trips(
    aliased: Model, tmp_path: Path, change: Callable[[Model], Model]
) -> None:
    model = change(aliased)
    save_model(model, tmp_path)
    net = load_model(tmp_path, aliased.arch).net
    assert torch.equal(net(model.example(2)), model.net(model.example(2)))
    assert not [key for key in load_file(tmp_path / "model.safetensors") if key.startswith("features")]


def test_tensors_that_share_memory_only_are_stored_each(tmp_path: Path) -> None:
    model = small()
    model.net.layer1[0].bn1.weight = nn.Parameter(model.net.bn1.weight.detach())  # type: ignore[union-attr, index]
    save_model(model, tmp_path)
    assert torch.equal(load_model(tmp_path).net(model.example()), model.net(model.example()))


def test_weights_under_one_of_their_names_load(aliased: Model, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_under_one_name(aliased.net, str(path))
    loaded = load_trained(ModelConfig(arch=aliased.arch, weights=str(path)))
    assert torch.equal(loaded(aliased.example()), aliased.net(aliased.example()))


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


def test_a_replaced_layer_is_replaced_under_all_its_names() -> None:
    net = Aliased()
    replace_module(net, "conv1", nn.Identity())
    assert isinstance(net.get_submodule("features.0"), nn.Identity)


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
        ("builtins:dict", "not a factory of networks"),
    ],
)
def test_a_factory_that_does_not_work_says_why(arch: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(arch)


GREY = {"size": 32, "resize": 0, "mean": [0.5], "std": [0.5], "channels": 1}
HUGE = {"type": "Linear", "in_features": 2**31 - 1, "out_features": 2**31 - 1, "bias": True}


def rewritten(folder: Path, **changes: object) -> Path:
    """A saved model whose ``model.json`` says something else."""
    save_model(small(), folder)
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "schema version 2, this version reads 1"),
        ({"args": {"num_classes": 10**12}}, "too many for a ResNet"),
        ({"args": {"unheard_of": 1}}, "failed: TypeError"),
        ({"arch": "resnet5O"}, "did you mean"),
        (
            {"preprocess": {"size": 10**9, "resize": 0, "mean": [0.5] * 3, "std": [0.5] * 3, "channels": 3}},
            "8192 pixels",
        ),
        (
            {"preprocess": {"size": 8, "resize": 0, "mean": [0.5] * 3, "std": [1e-39] * 3, "channels": 3}},
            "std .* above",
        ),
        (
            {
                "layers": {
                    "linear": {"type": "Linear", "in_features": 2**31 - 1, "out_features": 2**31 - 1, "bias": True}
                }
            },
            "linear",
        ),
        ({"layers": {"linear": {"type": "system", "command": "true"}}}, "does not match any of the expected tags"),
        ({"layers": {"nowhere": {"type": "Identity"}}}, "'nowhere' is"),
        ({"classes": ["a"]}, "has 3 outputs, and model.json names 1 classes"),
    ],
)
def test_a_description_that_cannot_be_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises((CheckpointError, ModelError), match=message):
        load_model(rewritten(tmp_path, **changes))


def test_a_stride_that_does_not_fit_is_found_before_anything_runs(tmp_path: Path) -> None:
    save_model(small(), tmp_path)
    record = json.loads((tmp_path / "model.json").read_text())
    record["layers"]["layer1.0.conv1"]["stride"] = [2, 2]
    (tmp_path / "model.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="does not compute"):
        load_model(tmp_path)
