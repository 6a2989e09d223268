"""Find the layers of any ONNX or OpenVINO file that can overflow when pairs of products are added in int16."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from compress.engines.base import Array
from compress.engines.openvino import runtime
from compress.engines.saturation import pair_sums
from compress.export.qdq import Graph, attribute
from compress.quantize.pairs import overflowing
from compress.registries import BACKENDS


def pairs_in_danger(graph: Graph) -> dict[str, int]:
    """The number of pairs of weights that can overflow, by layer, for the layers that have any.

    int8 weights are counted as stored; the layers are named as in ``Graph.label``.
    """
    found = {}
    for layer, node in graph.weights():
        weights = graph.constant(node.input[0])
        if weights is None or weights.dtype != np.int8 or layer.op_type == "ConvTranspose":
            continue
        if not graph.is_dequantized(layer.input[0]):
            continue  # it runs in float
        if layer.op_type == "Conv" and 1 < attribute(layer, "group", 1) == len(weights):
            continue  # depthwise: its kernels add no pairs
        if layer.op_type == "MatMul" or (layer.op_type == "Gemm" and not attribute(layer, "transB", 0)):
            weights = weights.T if weights.ndim == 2 else weights[:0]  # a batch of matrices is not a layer's weight
        if count := _count(weights):
            found[graph.label(layer)] = count
    return found


def overflow_warnings(path: Path, engine: str) -> list[str]:
    """The warnings for a file that has pairs of weights that overflow on this machine; empty if it has none.

    Args:
        path: the engine file.
        engine: the engine that runs it.
    """
    if pair_sums(engine) != "int16":
        return []
    found: dict[str, int] = {}
    if path.suffix == BACKENDS["onnxruntime"].suffix:
        found = pairs_in_danger(Graph(onnx.load(path)))
    elif path.suffix == BACKENDS["openvino"].suffix:
        found = {name: count for name, weights in _openvino_weights(path) if (count := _count(weights))}
    if not found:
        return []
    most = max(found, key=found.__getitem__)
    return [
        f"{sum(found.values())} pairs of weights in {len(found)} layers (most in {most}) can overflow: on this "
        f"processor, which lacks VNNI, {engine} clips sums of two products to 16 bits, so answers may be wrong; "
        "quantize with this package, or with 7-bit weights (reduce_range, overflow_fix)"
    ]


def _count(weights: Array) -> int:
    """Count the pairs of weights (C_out, C_in, ...) with one or two kernel axes, or none."""
    shape = weights.shape
    if weights.ndim == 3:
        weights = weights.reshape(*shape[:2], 1, shape[2])
    return int(overflowing(weights).sum()) if weights.ndim in (2, 4) else 0


def _openvino_weights(path: Path) -> Iterator[tuple[str, Array]]:
    """Name and int8 weights of an .xml file's layers: (C_out, C_in of a group, kh, kw) or (C_out, C_in)."""
    for node in runtime().Core().read_model(path).get_ordered_ops():
        kind = node.get_type_name()
        if kind not in ("Convolution", "GroupConvolution", "MatMul"):
            continue
        source = node.input_value(1).get_node()
        while source.get_type_name() != "Constant" and source.get_input_size():
            source = source.input_value(0).get_node()
        if source.get_type_name() != "Constant" or source.get_element_type().get_type_name() != "i8":
            continue
        weights = np.asarray(source.get_data())
        if kind == "MatMul":
            weights = weights if node.get_attributes()["transpose_b"] else weights.swapaxes(-1, -2)
        elif weights.ndim == 5:
            if weights.shape[1:3] == (1, 1):
                continue  # depthwise: its kernels add no pairs
            weights = weights.reshape(-1, *weights.shape[2:])
        yield source.get_friendly_name(), weights
