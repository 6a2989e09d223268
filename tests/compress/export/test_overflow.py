"""What other tools' files hold that overflows without VNNI, on any machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from calibration.preprocess import Preprocess
from compress.config import TargetConfig
from compress.engines.base import build_engine
from compress.engines.metadata import Metadata
from compress.export import overflow
from compress.export.lower import lower
from compress.export.onnx import export_onnx
from compress.export.overflow import overflow_warnings, pairs_in_danger
from compress.export.qdq import Graph
from compress.quantize.calibrate import calibrate


def layer(op: str, weights: np.ndarray, **attributes: int) -> onnx.ModelProto:
    """Q, DQ, and one layer with quantized weights."""
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["layer.weight", "one"], ["w"]),
        helper.make_node(op, ["x", "w"], ["output"], name="node", **attributes),
    ]
    constants = {"one": np.float32(1), "zero": np.uint8(0), "layer.weight": weights}
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


MATRIX = np.array([[127, 1, 0, 0], [127, 2, -127, -1], [100, -100, 0, 0]], np.int8)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (layer("Gemm", MATRIX, transB=1), 1),
        (layer("Gemm", MATRIX.T.copy()), 1),
        (layer("MatMul", MATRIX.T.copy()), 1),
        (layer("Gemm", MATRIX, transB=0), 2),  # read as (inputs, outputs): 127, 127 and 100 reach one output
        (layer("Conv", MATRIX[:, :, None, None]), 1),
        (layer("Conv", MATRIX.reshape(3, 1, 2, 2)), 1),
        (layer("Conv", MATRIX[:, :, None]), 1),
        (layer("Conv", np.full((8, 1, 3, 3), 127, np.int8), group=8), 0),  # depthwise: its kernels add no pairs
        (layer("Conv", (MATRIX // 2)[:, :, None, None]), 0),
        (layer("Conv", MATRIX.astype(np.uint8)[:, :, None, None]), 0),  # another kernel, which is exact
    ],
)
def test_pairs_are_counted_as_the_layer_reads_its_weights(model: onnx.ModelProto, count: int) -> None:
    found = pairs_in_danger(Graph(model))
    assert sum(found.values()) == count
    assert all("layer" in name for name in found)


@pytest.fixture
def ours(images: list[Tensor], tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6272, 4))
    calibrated = calibrate(net, images, "ort-x86")
    path = tmp_path / "ours.onnx"
    metadata = Metadata("net", "int8", Preprocess(32), tuple("abcd"), 10, 20, "ort-x86", "0.1.0")
    export_onnx(lower(calibrated.net, calibrated.quantizers), path, metadata, opset=20)
    return path


@pytest.fixture
def full_range(ours: Path) -> Path:
    model, path = onnx.load(ours), ours.with_name("theirs.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4:
            weights = numpy_helper.to_array(tensor).copy()
            weights[weights > 60] = 127
            tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("sums", ["int16", "int32"])
def test_a_file_is_warned_of_where_its_pairs_overflow_and_nowhere_else(
    ours: Path, full_range: Path, engine: str, sums: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer: Callable[[str], str] = lambda name: sums  # noqa: E731 - what a processor of the other kind would say
    monkeypatch.setattr(overflow, "pair_sums", answer)
    target = TargetConfig(name="ort-x86", engine=engine)
    files = [build_engine(engine, path, tmp_path / "built", target) for path in (ours, full_range)]
    assert overflow_warnings(files[0], engine) == []
    warnings = overflow_warnings(files[1], engine)
    assert len(warnings) == (sums == "int16")
    assert all("can overflow" in text and engine in text and "VNNI" in text for text in warnings)
