"""The engine's own integers, on processors of either kind: with VNNI and without."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from calibration.preprocess import Preprocess
from compress import targets
from compress.engines.metadata import Metadata
from compress.engines.saturation import pair_sums
from compress.errors import ModelError
from compress.export import difference
from compress.export.integer import IntegerNetwork, PairSums, simulates
from compress.export.lower import lower
from compress.export.onnx import export_onnx
from compress.export.overflow import pairs_in_danger
from compress.export.parity import (
    EVALUATED,
    INT8_ERROR,
    INTEGER_ERROR,
    MIXED_ERROR,
    Reference,
    check,
    compare,
    run_onnx,
    run_torch,
)
from compress.export.qdq import Graph
from compress.models.model import Model
from compress.quantize import placement
from compress.quantize.calibrate import Calibrated, calibrate
from compress.quantize.fakequant import at_quantizers, fake_quantized
from compress.quantize.store import load_calibrated, save_calibrated
from compress.targets import Profile

Make = Callable[[str], nn.Module]
NETS = [
    "resnet18",
    "cifar_resnet20",
    "cifar_resnet20_b",
    "resnext",
    pytest.param("resnext50_32x4d", marks=pytest.mark.slow),
    "maps",
]
MANY = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def write(calibrated: Calibrated, path: Path) -> Path:
    metadata = Metadata("net", "int8", Preprocess(32), ("a", "b"), 10, 20, "ort-x86", "0.1.0")
    export_onnx(lower(calibrated.net, calibrated.quantizers), path, metadata, opset=20)
    return path


@pytest.fixture
def full_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights as other tools choose them: up to 127 each, whatever their neighbours are."""
    plain = targets.profile("ort-x86").model_copy(update={"pair_sums": "int32"})

    def profile(name: str) -> Profile:
        return plain if name == "ort-x86" else targets.profile(name)

    monkeypatch.setattr(placement, "profile", profile)


@pytest.mark.parametrize("name", NETS)
def test_the_engine_computes_these_integers_on_every_processor(
    make: Make, images: list[Tensor], tmp_path: Path, name: str
) -> None:
    calibrated = calibrate(make(name), images, "ort-x86")
    path = write(calibrated, tmp_path / "net.onnx")
    network = IntegerNetwork(calibrated.net, calibrated.quantizers)
    network(MANY[:1])
    assert network.exact
    ours = check(path, Reference("its integers", network, INTEGER_ERROR), MANY)
    assert ours.agreement in (None, 1.0)
    assert ours.error <= check(path, Reference("torch", calibrated.fake(), INT8_ERROR), MANY).error
    assert not pairs_in_danger(Graph(onnx.load(path)))
    clipped = IntegerNetwork(calibrated.net, calibrated.quantizers, pair_sums="int16")
    assert compare(run_torch(clipped, MANY), run_torch(network, MANY)).error == 0.0


@pytest.mark.usefixtures("full_range")
@pytest.mark.parametrize("name", ["cifar_resnet20", "resnext"])
def test_weights_of_full_range_break_where_pairs_are_added_in_int16(
    make: Make, images: list[Tensor], tmp_path: Path, name: str
) -> None:
    calibrated = calibrate(make(name), images, "ort-x86")
    path = write(calibrated, tmp_path / "net.onnx")
    exact, clipped = (
        run_torch(IntegerNetwork(calibrated.net, calibrated.quantizers, sums), MANY) for sums in ("int32", "int16")
    )
    assert compare(exact, clipped).error > 100 * INTEGER_ERROR
    assert pairs_in_danger(Graph(onnx.load(path)))
    here = {"int32": exact, "int16": clipped}[pair_sums("onnxruntime") or ""]
    assert compare(here, run_onnx(path, MANY)).error <= INTEGER_ERROR


@pytest.mark.usefixtures("full_range")
def test_parity_names_the_layer_that_overflows(
    make: Make, images: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated = calibrate(make("cifar_resnet20"), images, "ort-x86")
    save_calibrated(Model(calibrated.net, "cifar_resnet20", Preprocess(32), ()), calibrated, tmp_path)
    calibrated = load_calibrated(tmp_path)  # as the stage has it: with parameters that can be trained
    # Either kind of processor differs from the other kind's integers, in the same place.
    other: PairSums = "int16" if pair_sums("onnxruntime") == "int32" else "int32"
    network = IntegerNetwork(calibrated.net, calibrated.quantizers, other)
    monkeypatch.setattr(difference, "pair_sums", lambda engine: "int16")
    with pytest.raises(ModelError, match=r"the first tensor that differs is made by .*conv1") as raised:
        check(
            write(calibrated, tmp_path / "net.onnx"),
            Reference("its own integers", network, INTEGER_ERROR, network.at_quantizers),
            MANY,
        )
    assert "clips sums of two products" in raised.value.remedy
    assert "report" not in raised.value.remedy


@pytest.mark.parametrize("layer", ["layer1.1.conv2", "layer3.2.conv2"])
def test_a_fault_is_found_where_it_begins(make: Make, images: list[Tensor], tmp_path: Path, layer: str) -> None:
    calibrated = calibrate(make("cifar_resnet20_b"), images, "ort-x86")
    path, other = write(calibrated, tmp_path / "net.onnx"), copy.deepcopy(calibrated.net)
    other.get_parameter(f"{layer}.weight").data *= 1.1
    fake = fake_quantized(other, calibrated.quantizers)
    check(path, Reference("torch", fake, INT8_ERROR), MANY)  # float leaves room for a fault of this size
    network = IntegerNetwork(other, calibrated.quantizers)
    with pytest.raises(ModelError, match=rf"its integers.*the first tensor that differs is .*{layer}"):
        check(path, Reference("its integers", network, INTEGER_ERROR, network.at_quantizers), MANY)
    with pytest.raises(ModelError, match=rf"the first tensor that differs is .*{layer}"):
        check(path, Reference("torch", fake, 1e-3, lambda x: at_quantizers(fake, x)), MANY, EVALUATED)


def test_without_optimizations_a_file_is_what_torch_says(make: Make, images: list[Tensor], tmp_path: Path) -> None:
    calibrated = calibrate(make("cifar_resnet20"), images, "ort-x86")
    path = write(calibrated, tmp_path / "net.onnx")
    assert check(path, Reference("torch", calibrated.fake(), INT8_ERROR), MANY, EVALUATED).error < 0.02


class Gated(nn.Module):
    """A float operation between two quantized tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x))
        x = torch.relu(self.two(x * x.mean((2, 3), keepdim=True).sigmoid()))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def test_it_says_where_the_integers_are_not_known_to_the_bit(images: list[Tensor]) -> None:
    torch.manual_seed(0)
    calibrated = calibrate(Gated(), images, "ort-x86")
    network = IntegerNetwork(calibrated.net, calibrated.quantizers)
    network(images[0])
    assert not network.exact


class Tokens(nn.Module):
    """Fully connected layers on (N, tokens, channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).flatten(2).transpose(1, 2)
        logits: Tensor = self.two(torch.relu(self.one(x)))
        return logits


def test_what_the_engine_runs_partly_in_float_is_not_held_to_the_bit(images: list[Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    calibrated = calibrate(Tokens().eval(), images, "ort-x86")
    network = IntegerNetwork(calibrated.net, calibrated.quantizers)
    check(write(calibrated, tmp_path / "net.onnx"), Reference("its own integers", network, MIXED_ERROR), MANY)
    assert not network.exact


def test_the_engine_pads_in_integers(images: list[Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
    end = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    net = nn.Sequential(first, nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), *end)
    calibrated = calibrate(net.eval(), images, "ort-x86")
    network = IntegerNetwork(calibrated.net, calibrated.quantizers)
    check(write(calibrated, tmp_path / "net.onnx"), Reference("its own integers", network, INTEGER_ERROR), MANY)
    assert network.exact


def test_a_sum_is_clipped_pair_by_pair() -> None:
    net = nn.Sequential(nn.Conv2d(4, 1, 1, bias=False))
    net[0].weight.data[:] = torch.tensor([1.0, 0.5, -1.0, 1.0])[None, :, None, None]
    x = torch.ones(1, 4, 1, 1)
    calibrated = calibrate(net, [x], "tensorrt", correction="none")
    quantizers = calibrated.quantizers
    (activation,) = [a for a in quantizers.activations if a.source == "input_1"]
    uint8 = replace(activation, low=0, high=255, scale=1 / 255)
    quantizers = replace(quantizers, activations=(uint8,))
    found = {}
    for sums in ("int32", "int16"):
        value = IntegerNetwork(calibrated.float_net, quantizers, sums)(x)  # type: ignore[arg-type]
        found[sums] = round(float(value) / (uint8.scale * quantizers.weights[0].scale[0]))
    assert found == {"int32": 255 * (127 + 64), "int16": 2**15 - 1}


def test_it_simulates_the_targets_of_onnxruntime_on_x86_alone() -> None:
    assert [name for name in targets.names() if simulates(targets.profile(name))] == ["ort-x86"]
