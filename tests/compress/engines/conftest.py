"""A small residual network as ONNX files: float, and quantized the right way and the wrong ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from calibration.preprocess import Preprocess
from compress.engines.metadata import Metadata

METADATA = Metadata(
    arch="tiny",
    precision="fp32",
    preprocess=Preprocess(size=16),
    classes=("a", "b", "c"),
    macs=1000,
    params=100,
    target="",
    version="0.1.0",
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="session")
def float_onnx(folder: Path) -> Path:
    """conv - relu - conv - add - relu - pool - gemm, batch dynamic, with our metadata."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(0, 0.2, (16, 3, 3, 3)),
        "b1": rng.normal(0, 0.1, 16),
        "w2": rng.normal(0, 0.1, (16, 16, 3, 3)),
        "b2": rng.normal(0, 0.1, 16),
        "w3": rng.normal(0, 0.3, (3, 16)),
        "b3": np.zeros(3),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["c1"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="second", pads=[1] * 4),
        helper.make_node("Add", ["c2", "r1"], ["a"], name="add"),
        helper.make_node("Relu", ["a"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, METADATA.to_props())
    onnx.checker.check_model(model, full_check=True)
    path = folder / "tiny_fp32.onnx"
    onnx.save(model, path)
    return path


class _Noise(CalibrationDataReader):
    def __init__(self) -> None:
        self._rng, self._left = np.random.default_rng(1), 8

    def get_next(self) -> dict[str, Any] | None:
        self._left -= 1
        return None if self._left < 0 else {"input": self._rng.normal(size=(4, 3, 16, 16)).astype(np.float32)}


@pytest.fixture(scope="session")
def quantized(folder: Path, float_onnx: Path) -> Callable[..., Path]:
    """Make an INT8 version: ``quantized(name, target=..., **options of quantize_static)``."""

    def make(name: str, target: str = "ort-x86", **options: Any) -> Path:
        path = folder / target / f"{name}.onnx"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            settings = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
            quantize_static(float_onnx, path, _Noise(), quant_format=QuantFormat.QDQ, **{**settings, **options})
            model = onnx.load(path)
            del model.metadata_props[:]
            helper.set_model_props(model, replace(METADATA, precision="int8", target=target).to_props())
            onnx.save(model, path)
        return path

    return make


@pytest.fixture(scope="session")
def unfenced(folder: Path, int8_onnx: Path, float_onnx: Path) -> Path:
    """Its second convolution is meant to stay float, but has Q/DQ on both sides: an engine may quantize its weight."""
    model = onnx.load(int8_onnx)
    conv = next(node for node in model.graph.node if node.name == "second")
    for node in [node for node in model.graph.node if set(node.output) & set(conv.input[1:])]:
        model.graph.node.remove(node)  # the DequantizeLinear of the weight and of the bias
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(float_onnx).graph.initializer}
    for index, (name, source) in enumerate({"second.weight": "w2", "second.bias": "b2"}.items(), start=1):
        model.graph.initializer.append(numpy_helper.from_array(arrays[source], name))
        conv.input[index] = name
    described = replace(METADATA, precision="int8", target="ort-x86", float_layers=("second",))
    helper.set_model_props(model, described.to_props())
    path = folder / "unfenced.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def int8_onnx(quantized: Callable[..., Path]) -> Path:
    return quantized("tiny_int8")
