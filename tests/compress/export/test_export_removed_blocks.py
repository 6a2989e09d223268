"""Neither file of a network without some blocks has a trace of them."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from calibration.preprocess import Preprocess
from compress.engines.metadata import Metadata
from compress.engines.onnxruntime import OpenOptions, operator_counts, optimized_graph
from compress.export.lower import lower
from compress.export.onnx import export_onnx
from compress.export.parity import FP32_ERROR, INT8_ERROR, Reference, check
from compress.graph.groups import couple
from compress.graph.segments import segments
from compress.models.model import Model, load_model, save_model
from compress.prune.surgery import cut
from compress.quantize.calibrate import calibrate
from compress.quantize.fold import fold

SHAPE = (3, 32, 32)


@pytest.fixture
def shallow(make: Callable[[str], nn.Module], tmp_path: Path) -> nn.Module:
    """A cifar_resnet20 without two of its nine blocks, saved and loaded."""
    net = make("cifar_resnet20")
    coupling = couple(net, SHAPE)
    removed = [s for s in segments(net, coupling, SHAPE) if s.name in ("layer1.0", "layer2.2")]
    pruned = cut(net, coupling, {"layer2.0.conv1": range(24)}, removed)
    save_model(Model(pruned, "cifar_resnet20", Preprocess(32), tuple("abcde")), tmp_path)
    return load_model(tmp_path).net


def metadata(precision: str) -> Metadata:
    target = "ort-x86" if precision == "int8" else ""
    return Metadata("net", precision, Preprocess(32), tuple("abcde"), 10, 20, target, "0.1.0")


def test_the_float_file(shallow: nn.Module, images: list[Tensor], tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export_onnx(fold(shallow), path, metadata("fp32"), opset=20)
    check(path, Reference("torch", shallow, FP32_ERROR), torch.cat(images))
    counts = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert (counts["Conv"], counts["Add"], counts["Relu"]) == (15, 7, 15)
    assert not {"ConstantOfShape", "Expand", "Identity", "Shape"} & counts.keys()


def test_the_int8_file(shallow: nn.Module, images: list[Tensor], tmp_path: Path) -> None:
    calibrated = calibrate(shallow, images, "ort-x86")
    path = tmp_path / "net.onnx"
    export_onnx(lower(calibrated.net, calibrated.quantizers), path, metadata("int8"), opset=20)
    check(path, Reference("torch", calibrated.fake(), INT8_ERROR), torch.cat(images))
    counts = operator_counts(optimized_graph(path, OpenOptions()))
    assert (counts["QLinearConv"], counts["QLinearAdd"]) == (15, 7)
    assert not {"Conv", "Add", "ConstantOfShape", "Expand"} & counts.keys()
