"""Make what is not quantized FP16: a strongly typed network runs in FP32 whatever its file types as FP32.

ONNX Runtime's converter does the conversion, except for three things: scales that FP16 cannot represent (it changes
them silently, so that an integer no longer stands for its weight), values outside FP16's range (it clips them), and
the order of the nodes (it appends its casts at the end, which the ONNX checker rejects).
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from compress.errors import ModelError

OPSET = 19  # the first with float16 scales in QuantizeLinear and DequantizeLinear
_LARGEST = float(np.finfo(np.float16).max)
_SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
_STEPS = 128  # |integer| of int8, at most


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with float16 in place of float32 except at its inputs and outputs, where it casts.

    Integers stay as they are, except the weights of a channel whose scale is so small that FP16 rounds it by more than
    half a step at the largest integer (below about 8e-6): these are rounded again, to the scale that FP16 has.

    Args:
        model: float32, with or without Q/DQ; metadata and names are kept.

    Raises:
        ModelError: the opset is too old for float16 scales, or a scale or a weight is outside FP16's range.
    """
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < OPSET:
        raise ModelError(f"float16 scales need opset {OPSET} or later, the file has {opset}", remedy="export it again")
    half = onnx.ModelProto()
    half.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in half.graph.initializer}
    _fit_scales(half.graph, tensors)
    for tensor in tensors.values():
        if tensor.data_type == onnx.TensorProto.FLOAT:
            _check_range(tensor.name, numpy_helper.to_array(tensor))
    typed: onnx.ModelProto = convert_float_to_float16(half, keep_io_types=True)
    OnnxModel(typed).topological_sort()
    return typed


def half_scale(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest scales above 0 that FP16 can represent, as float32.

    >>> half_scale(np.float32([0.5, 1e-12]))
    array([5.0000000e-01, 5.9604645e-08], dtype=float32)
    """
    return np.maximum(scale.astype(np.float16).astype(np.float32), np.float32(_SMALLEST))


def _fit_scales(graph: onnx.GraphProto, tensors: dict[str, onnx.TensorProto]) -> None:
    """Round every scale to FP16, and adjust constant integers so that they stand for the same values."""
    before: dict[str, NDArray[np.float32]] = {}
    rounded: set[str] = set()
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        name = node.input[1]
        if name not in tensors:
            raise ModelError(f"the scale of '{node.name}' is not a constant of the file", remedy="export it again")
        if name not in before:
            before[name] = numpy_helper.to_array(tensors[name])
            _check_range(name, before[name] * _STEPS)
            tensors[name].CopyFrom(numpy_helper.from_array(half_scale(before[name]), name))
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors.keys() - rounded:
            rounded.add(node.input[0])  # a layer that is called twice has its integers once
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            _round_anew(tensors[node.input[0]], before[name], axis)


def _round_anew(tensor: onnx.TensorProto, scale: NDArray[np.float32], axis: int) -> None:
    integers = numpy_helper.to_array(tensor)
    ratio = scale.astype(np.float64) / half_scale(scale)
    if ratio.ndim:
        ratio = ratio.reshape([-1 if dim == axis % integers.ndim else 1 for dim in range(integers.ndim)])
    bounds = np.iinfo(integers.dtype)
    moved = np.rint(integers * ratio).clip(bounds.min, bounds.max).astype(integers.dtype)
    tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))


def _check_range(name: str, values: NDArray[np.float32]) -> None:
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= _LARGEST:
        raise ModelError(
            f"'{name}' needs values up to {largest:.3g}, but the largest float16 value is {_LARGEST:.0f}",
            remedy="the network's weights or activations are too large for FP16; was it trained to convergence?",
        )
