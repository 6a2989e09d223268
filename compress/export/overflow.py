"""Which layers of a file can overflow where pairs of products are added in int16, whoever made the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from compress.engines.base import BACKENDS, Array
from compress.engines.openvino import runtime
from compress.engines.saturation import pair_sums
from compress.export.qdq import Graph, attribute
from compress.quantize.pairs import overflowing


def pairs_in_danger(graph: Graph) -> dict[str, int]:
    """How many pairs of weights can overflow, by layer, of those that have any.

    Counted are int8 weights as stored; the layers are named as in ``Graph.label``.
    """
    found = {}
    for layer, node in graph.weights():
        weights = graph.constant(node.input[0])
        if weights is None or weights.dtype != np.int8 or layer.op_type == "ConvTranspose":
            continue
        if not graph.is_dequantized(layer.input[0]):
            continue  # it runs in float
        transposed = layer.op_type == "MatMul" or (layer.op_type == "Gemm" and not attribute(layer, "transB", 0))
        if count := _count(weights.T if transposed else weights):
            found[graph.label(layer)] = count
    return found


def overflow_warnings(path: Path, engine: str) -> list[str]:
    """What to say where a file has pairs that overflow on this machine; nothing otherwise.

    Args:
        path: the engine file.
        engine: that runs it.
    """
    if pair_sums(engine) != "int16":
        return []
    if path.suffix == BACKENDS["onnxruntime"].suffix:
        found = pairs_in_danger(Graph(onnx.load(path)))
    else:
        found = {name: count for name, weights in _openvino_weights(path) if (count := _count(weights))}
    if not found:
        return []
    most = max(found, key=found.__getitem__)
    return [
        f"{sum(found.values())} pairs of weights in {len(found)} layers (most in {most}) can overflow, and {engine} "
        "adds pairs in int16 on this processor: its answers are not those of a processor with VNNI; quantize with this "
        "package, or with 7-bit weights (reduce_range, overflow_fix)"
    ]


def _count(weights: Array) -> int:
    """Of weights (C_out, C_in, ...) with one or two kernel axes, or none."""
    shape = weights.shape
    if weights.ndim == 3:
        weights = weights.reshape(*shape[:2], 1, shape[2])
    return int(overflowing(weights).sum()) if weights.ndim in (2, 4) else 0


def _openvino_weights(path: Path) -> Iterator[tuple[str, Array]]:
    """Name and int8 weights of an .xml file's layers: (C_out, C_in of a group, kh, kw) or (C_out, C_in)."""
    for node in runtime().Core().read_model(path).get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type().get_type_name() != "i8":
            continue
        weights = np.asarray(node.get_data())
        yield node.get_friendly_name(), weights.reshape(-1, *weights.shape[2:]) if weights.ndim == 5 else weights
