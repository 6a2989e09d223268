"""Find where an exported file begins to compute something else and, if possible, why."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import NodeProto
from torch import Tensor

from compress.engines.onnxruntime import float_convolutions, optimized_graph
from compress.engines.saturation import pair_sums
from compress.export.overflow import pairs_in_danger
from compress.export.qdq import CLAMPS, MOVES, Graph, module_of

Run = Callable[[Path, Tensor], list[NDArray[np.float32]]]

UNKNOWN = (
    "an operation there, or before, was exported wrongly, or the engine computes it wrongly "
    f"(torch {torch.__version__}, onnxruntime {ort.__version__}); please report it with the network"
)


def explain(
    path: Path, expected: Mapping[str, Tensor], images: Tensor, limit: float, run: Run, engine: str | None
) -> tuple[str, str]:
    """Find the first tensor that differs.

    Args:
        path: the exported INT8 file.
        expected: the values of its quantized tensors on ``images``, by the name of the quantizer's module.
        limit: the relative error above which a tensor counts as different.
        run: runs a file on images and returns all of its outputs.
        engine: the engine that ``run`` uses, in production settings; None if it evaluates operation by operation.

    Returns:
        where it begins, as the end of a sentence (empty if it cannot be found), and a remedy.
    """
    graph = Graph(onnx.load(path))
    quantizers = [(module_of(node), node) for node in graph.activations()]
    known = {node.output[0]: (expected[name], node) for name, node in quantizers if name and name in expected}
    for tensor, found in _tensors(path, list(known), images, run).items():
        value, node = known[tensor]
        p = graph.parameters(node)
        if p.scale is None or p.zero_point is None:
            continue
        real = (found.astype(np.float32) - p.zero_point) * p.scale
        error = float(np.linalg.norm(real - value.numpy()) / max(float(np.linalg.norm(value.numpy())), 1e-30))
        if error > limit:
            layer = _made_by(graph, node)
            return f"; the first tensor that differs is made by {graph.label(layer)}", _reason(path, layer, engine)
    return "", UNKNOWN


def _tensors(path: Path, names: list[str], images: Tensor, run: Run) -> dict[str, NDArray[np.float32]]:
    """The integers of some quantized tensors, in the graph's order: the file is run with these as extra outputs."""
    model = onnx.load(path)
    own = len(model.graph.output)
    kinds = Graph(model).types
    for name in names:
        kind = onnx.TensorProto.INT8 if kinds.get(name) == "int8" else onnx.TensorProto.UINT8
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    with tempfile.TemporaryDirectory() as folder:
        longer = Path(folder) / path.name
        longer.write_bytes(model.SerializeToString())
        return dict(zip(names, run(longer, images)[own:], strict=True))


def _made_by(graph: Graph, quantizer: NodeProto) -> NodeProto:
    """The node that computes the values that ``quantizer`` rounds: a layer or an addition before its ReLU."""
    node = quantizer
    while (before := graph.producer(node.input[0])) is not None:
        node = before
        if node.op_type not in (*CLAMPS, *MOVES):
            break
    return node


def _reason(path: Path, node: NodeProto, engine: str | None) -> str:
    """Explain why the output of a node differs, and what to do."""
    graph = Graph(onnx.load(path))
    layers = [node, *(source for name in node.input if (source := graph.producer(name)) is not None)]  # of an addition
    danger = pairs_in_danger(graph)
    endangered = sum(danger.get(graph.label(layer), 0) for layer in layers)
    if engine is not None and endangered and pair_sums(engine) == "int16":
        return (
            f"{endangered} pairs of its weights can overflow, and this processor clips sums of two products: set "
            'pair_sums = "int16" in the target\'s profile and quantize again, or export on a processor with VNNI'
        )
    floats = float_convolutions(optimized_graph(path)) if engine == "onnxruntime" else []
    if any(name in names for names in floats for layer in layers for name in (layer.name, layer.output[0])):
        return "ONNX Runtime runs this layer in float on this processor: build the engine on its target device"
    return UNKNOWN
