import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from calibration.preprocess import Preprocess
from compress import targets
from compress.engines.metadata import Metadata
from compress.errors import ModelError
from compress.export.integer import integer_network, simulates
from compress.export.lower import lower
from compress.export.onnx import export_onnx
from compress.export.parity import INT8_ERROR, INTEGER_ERROR, check
from compress.quantize.calibrate import calibrate
from compress.quantize.fakequant import fake_quantized

Make = Callable[[str], nn.Module]
CPUINFO = Path("/proc/cpuinfo")
VNNI = CPUINFO.exists() and "vnni" in CPUINFO.read_text()


def exported(net: nn.Module, images: list[Tensor], path: Path) -> tuple[Path, nn.Module, Callable[[Tensor], object]]:
    calibrated = calibrate(net, images, "ort-x86")
    metadata = Metadata("net", "int8", Preprocess(32), ("a", "b"), 10, 20, "ort-x86", "0.1.0")
    export_onnx(lower(calibrated.net, calibrated.quantizers), path, metadata, opset=20)
    return path, calibrated.fake(), integer_network(calibrated.net, calibrated.quantizers)


@pytest.mark.skipif(not VNNI, reason="without VNNI the kernels saturate")
@pytest.mark.parametrize("name", ["resnet18", "cifar_resnet20", "cifar_resnet20_b", "resnext50_32x4d", "maps"])
def test_the_engine_computes_these_integers(make: Make, images: list[Tensor], tmp_path: Path, name: str) -> None:
    path, fake, integers = exported(make(name), images, tmp_path / "net.onnx")
    many = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    ours, float_sums = check(path, integers, many, limit=INTEGER_ERROR), check(path, fake, many, limit=INT8_ERROR)
    assert ours.error < 0.01
    assert ours.error <= float_sums.error
    assert ours.agreement in (None, 1.0)


@pytest.mark.skipif(not VNNI, reason="without VNNI the kernels saturate")
def test_a_fault_that_float_leaves_room_for_is_found(make: Make, images: list[Tensor], tmp_path: Path) -> None:
    net = make("cifar_resnet20_b")
    path, *_ = exported(net, images, tmp_path / "net.onnx")
    calibrated = calibrate(net, images, "ort-x86")
    other = copy.deepcopy(calibrated.net)
    other.get_parameter("layer3.2.conv2.weight").data *= 1.1
    many = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    check(path, fake_quantized(other, calibrated.quantizers), many, limit=INT8_ERROR)
    with pytest.raises(ModelError, match="does not compute"):
        check(path, integer_network(other, calibrated.quantizers), many, limit=INTEGER_ERROR)


def test_it_simulates_the_targets_of_onnxruntime_on_x86_alone() -> None:
    assert [name for name in targets.names() if simulates(targets.profile(name))] == ["ort-x86"]
