"""Write a network as one ONNX file: dynamic batch, weights inside, checked, with this package's metadata."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import nn
from torch.utils import _pytree as pytree

from calibration.preprocess import Preprocess
from compress.engines.metadata import Metadata
from compress.errors import ModelError
from compress.export.half import to_half
from compress.files import write_atomic
from compress.graph.tracing import without_removed

INPUT = "input"


def export_onnx(net: nn.Module, path: Path, metadata: Metadata, opset: int, *, half: bool = False) -> None:
    """Export with torch's current exporter (torch.export + onnxscript).

    Args:
        net: float, or with Q/DQ from ``lower``; eval mode, on the CPU.
        path: replaced when the new file is complete and has passed ``onnx.checker``.
        metadata: written to ``metadata_props``; its preprocess gives the input's shape.
        half: make it float16 except for its inputs and outputs; see ``to_half``.

    Raises:
        ModelError: the network has an operation that the exporter cannot translate, or does not fit float16, or the
            file is not valid ONNX.
    """
    example = example_input(metadata.preprocess)
    names = output_names(net, example)
    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet():
            program = torch.onnx.export(
                without_removed(net),
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=names,
                dynamic_shapes=({0: batch},),
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter's errors have no common class
        raise ModelError(
            f"cannot export to ONNX: {error}", remedy="is every operation of the network in ONNX?"
        ) from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _pool_globally(model.graph)
    if half:
        model = to_half(model)
    onnx.helper.set_model_props(model, metadata.to_props())
    model.producer_name, model.producer_version = "resnet-compress", metadata.version
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"the exported graph of {path.name} is not valid ONNX: {error}") from error
    write_atomic(path, model.SerializeToString(deterministic=True))


def _pool_globally(graph: onnx.GraphProto) -> None:
    """Turn means over height and width, as the exporter writes average pooling to 1x1, into GlobalAveragePool.

    ONNX Runtime has an integer kernel for GlobalAveragePool; it runs ReduceMean in float between two conversions.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in [*graph.value_info, *graph.input]}
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        axes = {int(axis) % 4 for axis in onnx.numpy_helper.to_array(constants[node.input[1]])}
        keeps = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        if axes == {2, 3} and keeps and ranks.get(node.input[0]) == 4:
            node.op_type = "GlobalAveragePool"
            del node.attribute[:], node.input[1:]
    used = {name for node in graph.node for name in node.input}
    unused = [tensor for tensor in graph.initializer if tensor.name not in used]
    for tensor in unused:
        graph.initializer.remove(tensor)


def example_input(preprocess: Preprocess) -> torch.Tensor:
    """Two zero images (2, C, H, W): the exporter would take a batch of 1 for a constant."""
    return torch.zeros(2, *preprocess.shape)


@torch.no_grad()
def output_names(net: nn.Module, example: torch.Tensor) -> list[str]:
    """``logits`` for one output; ``output0``, ``output1``, ... for several, in the order that torch flattens them."""
    outputs = [leaf for leaf in pytree.tree_leaves(net(example)) if isinstance(leaf, torch.Tensor)]
    return ["logits"] if len(outputs) == 1 else [f"output{i}" for i in range(len(outputs))]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's progress prints, log lines and warnings."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
