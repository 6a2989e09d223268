"""Factories as people write them, and what is done to a network that one has built."""

import copy
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from compress.config import ModelConfig, load_config
from compress.errors import CheckpointError, ModelError
from compress.models.checkpoint import load_trained
from compress.models.prepare import as_float32, is_lazy, materialize, prepare, remove_parametrizations
from compress.models.registry import build, is_factory, needs_class_count, preprocessing_of

HERE = __name__


def head(outputs: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, outputs))


def plain(num_classes: int = 5) -> nn.Module:
    return head(num_classes)


def n_classes(n_classes: int = 5) -> nn.Module:
    return head(n_classes)


def classes(*, classes: int | None = None) -> nn.Module:
    return head(classes or 5)


def num_labels(width: int = 1, num_labels: int = 5) -> nn.Module:
    return head(num_labels)


def needs(num_classes: int) -> nn.Module:
    return head(num_classes)


def forwards(**kwargs: Any) -> nn.Module:
    return plain(**kwargs)


def forwards_to_another_name(**kwargs: Any) -> nn.Module:
    return n_classes(**kwargs)


def fills_it_in(**kwargs: Any) -> nn.Module:
    return plain(num_classes=5, **kwargs)


def names_of_classes(classes: tuple[str, ...] = ("a", "b", "c", "d", "e")) -> nn.Module:
    return head(len(classes))


def no_argument() -> nn.Module:
    return head(5)


class Net(nn.Sequential):
    def __init__(self, num_classes: int = 5, **_: Any) -> None:
        super().__init__(*head(num_classes))


bound = partial(plain, num_classes=5)
foreign = partial(torchvision.models.resnet18, num_classes=5)
of_a_class = partial(Net)


def outputs(net: nn.Module) -> int:
    return net.eval()(torch.zeros(1, 3, 32, 32)).shape[1]  # type: ignore[no-any-return]


TAKE = ["plain", "n_classes", "classes", "num_labels", "needs", "forwards", "Net", "bound", "foreign", "of_a_class"]
KEEP = ["forwards_to_another_name", "fills_it_in", "names_of_classes", "no_argument"]


@pytest.mark.parametrize(("name", "count"), [*((name, 7) for name in TAKE), *((name, 5) for name in KEEP)])
def test_a_factory_gets_the_number_of_classes_where_it_takes_it(name: str, count: int) -> None:
    assert outputs(build(f"{HERE}:{name}", 7)) == count


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("plain", {"num_classes": 4}),
        ("n_classes", {"n_classes": 4}),
        ("forwards", {"num_classes": 4}),
        ("forwards_to_another_name", {"n_classes": 4}),
        ("bound", {"num_classes": 4}),
    ],
)
def test_the_users_own_number_comes_first(name: str, args: dict[str, Any]) -> None:
    assert outputs(build(f"{HERE}:{name}", 7, args)) == 4


def test_a_factory_may_demand_a_number() -> None:
    assert [needs_class_count(f"{HERE}:{name}", {}) for name in ("needs", "plain", "forwards")] == [True, False, False]
    assert not needs_class_count(f"{HERE}:needs", {"num_classes": 3})


def test_a_factory_that_demands_a_number_gets_the_files(tmp_path: Any) -> None:
    torch.save(head(7).state_dict(), tmp_path / "w.pth")
    for name in ("needs", "plain", "n_classes", "forwards"):
        net = load_trained(ModelConfig(arch=f"{HERE}:{name}", weights=str(tmp_path / "w.pth")))
        assert outputs(net) == 7
    with pytest.raises(CheckpointError, match="weights are for 7 classes"):
        load_trained(ModelConfig(arch=f"{HERE}:no_argument", weights=str(tmp_path / "w.pth")))


def in_a_tuple() -> Any:
    return head(5), torch.optim.SGD([torch.zeros(1)], lr=1)


def in_a_dict() -> Any:
    return {"net": head(5)}


def nothing() -> Any:
    return None


def a_type_error() -> nn.Module:
    return nn.Conv2d(3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("in_a_tuple", "returned a tuple with Sequential in it, not a torch.nn.Module(.|\n)*returns the network alone"),
        ("in_a_dict", "returned a dict with Sequential in it"),
        ("nothing", "returned a NoneType, not"),
        ("a_type_error", "failed: TypeError: .*missing"),
    ],
)
def test_what_is_no_network_is_named(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(f"{HERE}:{name}", 7)


# What is done to a network.


class Notes:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_other_precisions_become_float32_and_are_told(dtype: torch.dtype) -> None:
    net, notes = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(dtype), Notes()
    as_float32(net, notes)  # type: ignore[arg-type]
    assert {tensor.dtype for tensor in net.state_dict().values()} == {torch.float32, torch.int64}
    assert notes.lines == [f"the network is built in {str(dtype)[6:]}: converted to float32"]
    as_float32(net, notes)  # type: ignore[arg-type]
    assert len(notes.lines) == 1


class Lazy(nn.Module):
    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Dropout())
        self.fc = nn.LazyLinear(num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x).flatten(1))  # type: ignore[no-any-return]


class Unused(Lazy):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.LazyLinear(3)


def test_lazy_layers_get_their_sizes_from_one_run() -> None:
    net = Lazy()
    assert is_lazy(net)
    materialize(net, (3, 8, 8))
    assert not is_lazy(net)
    assert net.training
    assert net.fc.in_features == 4 * 36
    assert copy.deepcopy(net).state_dict()["body.1.num_batches_tracked"] == 0  # the run was no training


def test_a_lazy_network_that_does_not_run_is_named() -> None:
    with pytest.raises(ModelError, match="lazy layers and does not run on an input of"):
        materialize(Lazy(), (3, 2, 2))
    with pytest.raises(ModelError, match=r"the lazy layer of 'other\.weight' is not used"):
        materialize(Unused(), (3, 8, 8))


def test_a_network_without_lazy_layers_is_not_run() -> None:
    net = nn.Sequential(nn.Linear(3, 3))
    net.register_forward_hook(lambda *_: pytest.fail("ran"))
    materialize(net, (3, 8, 8))


def test_a_lazy_network_takes_its_weights(tmp_path: Any) -> None:
    net = Lazy(7).eval()
    materialize(net, (3, 8, 8))
    torch.save(net.state_dict(), tmp_path / "w.pth")
    found = load_trained(ModelConfig(arch=f"{HERE}:Lazy", weights=str(tmp_path / "w.pth")), shape=(3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(found(x), net(x))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "split",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.orthogonal,
        lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", 0.5),
    ],
)
def test_weights_that_are_computed_become_plain(split: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(split(nn.Linear(4, 4)), nn.ReLU()).eval()
    x = torch.randn(3, 4)
    before = net(x)
    net.train()
    assert remove_parametrizations(net) == ["0.weight"]
    assert net.training
    assert type(net[0]) is nn.Linear
    torch.testing.assert_close(copy.deepcopy(net)(x), before)
    assert set(net.state_dict()) == {"0.weight", "0.bias"}
    assert remove_parametrizations(net) == []


def test_a_network_is_prepared_in_one_go() -> None:
    net = prepare(Lazy().half(), (3, 8, 8))
    assert {type(module).__name__ for module in net.modules()} >= {"Conv2d", "BatchNorm2d", "Linear"}
    assert next(net.parameters()).dtype == torch.float32


# timm.

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


def test_a_name_of_timm_is_no_factory_of_the_users() -> None:
    assert not is_factory("timm:resnet18")
    assert load_config(None, ["model.arch=timm:resnet50.a1_in1k"]).name == "resnet50"


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ModelError, match=r"timm cannot be imported(.|\n)*resnet-compress\[timm\]"):
        build("timm:resnet18")


@needs_timm
def test_a_network_of_timm_is_built_for_the_classes() -> None:
    assert outputs(build("timm:test_resnet", 7)) == 7
    assert outputs(build("timm:test_resnet.r160_in1k", args={"num_classes": 4})) == 4


@needs_timm
@pytest.mark.parametrize("name", ["resnet5O", "hf-hub:user/net", "local-dir:x", ""])
def test_only_names_of_timms_own_list_are_built(name: str) -> None:
    with pytest.raises(ModelError, match="timm has no"):
        build(f"timm:{name}")


@needs_timm
@pytest.mark.parametrize(
    "key", ["pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"]
)
def test_no_argument_makes_timm_read_a_file(key: str) -> None:
    with pytest.raises(ModelError, match=f"model.args.{key}: a network of timm is built without weights"):
        build("timm:test_resnet", args={key: "x"})


@needs_timm
def test_the_preprocessing_of_timm_goes_by_the_keys_of_data() -> None:
    found = preprocessing_of("timm:resnet50d")
    assert found is not None
    assert (found["input_size"], found["resize"], found["interpolation"]) == (224, 256, "bicubic")
    assert preprocessing_of("resnet50") is None
    with pytest.raises(ModelError, match="Invalid pretrained tag"):
        preprocessing_of("timm:resnet50d.nothing")


@needs_timm
def test_weights_of_timm_are_for_its_networks_only() -> None:
    with pytest.raises(CheckpointError, match="is not a network of timm"):
        load_trained(ModelConfig(arch="resnet18", weights="timm"))


@needs_timm
def test_a_trained_network_of_timm_loads(tmp_path: Any) -> None:
    net = build("timm:test_resnet", 3).eval()
    torch.save({"state_dict": net.state_dict(), "arch": "test_resnet"}, tmp_path / "w.pth.tar")
    found = load_trained(ModelConfig(arch="timm:test_resnet", weights=str(tmp_path / "w.pth.tar")))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(found(x), net(x))
