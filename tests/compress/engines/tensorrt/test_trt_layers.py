"""The inspector's report read in the forms that TensorRT documents.

- 8 to 10: ``Format/Datatype`` is one phrase. NVIDIA's developer guide, "Engine Inspector", and reports in the issues
  NVIDIA/TensorRT#3737 (8.6, an INT8 convolution) and #4020 (10.2, a reformat).
- 11: ``Format`` and ``DataType`` apart, ``I/O Tensors`` in place of ``Bindings``: NVIDIA's page "Migrating
  IEngineInspector Usage from TensorRT 10.x to 11.x".

They are texts, not the output of a build here: that needs a GPU.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from compress.engines.tensorrt.build import check_int8, told
from compress.engines.tensorrt.layers import read_layers
from compress.engines.tensorrt.plan import shape_range
from compress.errors import EngineError

INT8 = "Thirty-two wide channel vectorized row major Int8 format"
FP16 = "Channel major FP16 format where channel % 4 == 0"
FP32 = "Row major linear FP32"


def tensor(version: int, name: str, kind: str) -> dict[str, Any]:
    described = {"int8": INT8, "fp16": FP16, "fp32": FP32}[kind]
    if version < 11:
        return {"Name": name, "Location": "Device", "Dimensions": [1, 64, 56, 56], "Format/Datatype": described}
    data_type = {"int8": "Int8", "fp16": "Half", "fp32": "Float"}[kind]
    return {"Name": name, "Dimensions": [1, 64, 56, 56], "Format": described, "DataType": data_type}


def layer(version: int, name: str, kind: str, gives: str, **facts: Any) -> dict[str, Any]:
    return {
        "Name": name,
        "LayerType": "CaskConvolution",
        "Inputs": [tensor(version, name + "_in", kind)],
        "Outputs": [tensor(version, name + "_out", gives)],
        "TacticValue": "0x0",
        **facts,
    }


def report(version: int, *extra: dict[str, Any]) -> str:
    layers = [
        layer(version, "Reformatting CopyNode for Input Tensor 0 to conv1", "fp32", "int8", LayerType="Reformat"),
        layer(version, "conv1 + relu", "int8", "int8", ParameterType="Convolution", Weights={"Type": "Int8"}),
        layer(version, "conv2 + add + relu", "int8", "fp16", ParameterType="Convolution", Weights={"Type": "Int8"}),
        layer(version, "pool", "fp16", "fp16", LayerType="kgen"),
        *extra,
    ]
    ends = ["input", "logits"] if version < 11 else [{"Name": "input", "IOMode": "Input", "DataType": "Float"}]
    return json.dumps({"Layers": layers, "Bindings" if version < 11 else "I/O Tensors": ends})


@pytest.mark.parametrize("version", [10, 11])
def test_precisions_are_counted_and_the_leftovers_named(version: int) -> None:
    layers = read_layers(report(version))
    assert (layers.int8, layers.fp16, layers.fp32, layers.unknown, layers.moves) == (2, ("pool",), (), (), 1)
    check_int8(layers, "net.onnx")
    assert list(told(layers)) == ["plan: 2 layers in INT8, 1 in FP16, 1 that move data", "  still FP16: pool"]


@pytest.mark.parametrize("version", [10, 11])
def test_a_convolution_in_fp32_is_an_error_that_names_it(version: int) -> None:
    layers = read_layers(report(version, layer(version, "fc", "fp32", "fp32", LayerType="gemm")))
    assert layers.fp32 == layers.float_convolutions == ("fc",)
    with pytest.raises(EngineError, match="first 'fc'"):
        check_int8(layers, "net.onnx")


@pytest.mark.parametrize("version", [10, 11])
def test_other_fp32_layers_are_told(version: int) -> None:
    layers = read_layers(
        report(version, *(layer(version, f"mean{i}", "fp32", "fp32", LayerType="kgen") for i in range(7)))
    )
    check_int8(layers, "net.onnx")
    assert "  still FP32: mean0, mean1, mean2, mean3, mean4 and 2 more" in list(told(layers))


def test_a_plan_without_int8_is_an_error() -> None:
    text = json.dumps({"Layers": [layer(10, "conv1", "fp16", "fp16")], "Bindings": []})
    with pytest.raises(EngineError, match="no layer of the plan does"):
        check_int8(read_layers(text), "net.onnx")


def test_names_alone_or_hidden_types_are_unknown_not_wrong() -> None:
    hidden = layer(10, "conv2", "int8", "int8")
    hidden["Inputs"][0]["Format/Datatype"] = "N/A due to dynamic shapes"
    layers = read_layers(json.dumps({"Layers": ["conv1 + relu", hidden], "Bindings": []}))
    assert layers.unknown == ("conv1 + relu", "conv2")
    check_int8(layers, "net.onnx")


def test_weights_tell_where_the_input_does_not() -> None:
    hidden = layer(10, "conv2", "int8", "int8", Weights={"Type": "Int8", "Count": 9})
    hidden["Inputs"][0]["Format/Datatype"] = "N/A due to dynamic shapes"
    assert read_layers(json.dumps({"Layers": [hidden]})).int8 == 1


def test_control_characters_as_10_puts_between_names() -> None:
    text = json.dumps({"Layers": [layer(10, "SEPARATED", "fp16", "fp16")]}).replace("SEPARATED", "conv1\x1erelu")
    assert read_layers(text).fp16 == ("conv1 + relu",)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"Layers": 3}', "no json"])
def test_what_is_no_report_is_an_error(text: str) -> None:
    with pytest.raises(EngineError, match="cannot be read"):
        read_layers(text)


def test_the_shape_profile_covers_the_batch() -> None:
    assert shape_range((-1, 3, 8, 8), batch=64) == ((1, 3, 8, 8), (64, 3, 8, 8), (64, 3, 8, 8))
    assert shape_range((4, 3, 8, 8), batch=4) == ((4, 3, 8, 8),) * 3
    with pytest.raises(EngineError, match="only the batch may be dynamic"):
        shape_range((-1, 3, -1, 8), batch=1)
    with pytest.raises(EngineError, match="batches of 4"):
        shape_range((4, 3, 8, 8), batch=1)
