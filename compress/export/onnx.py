"""Write a network as one ONNX file: dynamic batch, weights inside, checked, with this package's metadata."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from calibration.preprocess import Preprocess
from compress.engines.metadata import Metadata
from compress.errors import ModelError
from compress.export.half import to_half
from compress.export.qdq import MODULE, module_of
from compress.files import write_atomic
from compress.frontend.network import RaisedNetwork

INPUT = "input"
_OUTPUT = "compress.output."  # of the outputs while the exporter names the other tensors


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
    if isinstance(net, RaisedNetwork):
        net = fx.GraphModule(net, net.live_graph())  # the exporter reads the graph, not the forward pass
    example = example_input(metadata.preprocess)
    names = output_names(net, example)
    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet():
            program = torch.onnx.export(
                net,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[f"{_OUTPUT}{index}" for index in range(len(names))],
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
    _name_outputs(model.graph, names)
    _forget_origins(model)
    _pool_globally(model.graph)
    if half:
        model = to_half(model)
    onnx.helper.set_model_props(model, metadata.to_props())
    model.producer_name, model.producer_version = "resnet-compress", metadata.version
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        first = str(error).strip().partition("\n")[0]
        remedy = "ONNX lacks some operators in float16: export for a target with float32" if half else ""
        raise ModelError(f"the exported graph of {path.name} is not valid ONNX: {first}", remedy=remedy) from error
    write_atomic(path, model.SerializeToString(deterministic=True))


def _name_outputs(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Give the outputs their names; a tensor inside that has the name of one gets another."""
    new = {name: f"{name}.inside" for name in names} | {f"{_OUTPUT}{i}": name for i, name in enumerate(names)}
    for value in (*graph.output, *graph.value_info, *graph.initializer):
        value.name = new.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]


def _forget_origins(model: onnx.ModelProto) -> None:
    """Keep of the exporter's notes only the module that made a node; see ``module_of``.

    The others hold the paths and lines of the user's source code, and are larger than the weights of a small network.
    """
    graph = model.graph
    for node in graph.node:
        module, node.doc_string = module_of(node), ""
        del node.metadata_props[:]
        if module:
            node.metadata_props.add(key=MODULE, value=module)
    constants = {tensor.name for tensor in graph.initializer}  # these say their type and shape themselves
    kept = [value for value in graph.value_info if value.name not in constants]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for value in (graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    model.doc_string = ""


def _pool_globally(graph: onnx.GraphProto) -> None:
    """Turn means over height and width, as the exporter writes average pooling to 1x1, into GlobalAveragePool.

    ONNX Runtime has an integer kernel for GlobalAveragePool; it runs ReduceMean in float between two conversions.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in [*graph.value_info, *graph.input]}
    for index, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        axes = {int(axis) % 4 for axis in onnx.numpy_helper.to_array(constants[node.input[1]])}
        keeps = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        if axes == {2, 3} and ranks.get(node.input[0]) == 4:
            node.op_type = "GlobalAveragePool"
            del node.attribute[:], node.input[1:]
            if not keeps:
                flat, node.output[0] = node.output[0], f"{node.output[0]}_4d"
                # A Reshape, because ONNX Runtime moves no Q/DQ across a Flatten.
                sizes = onnx.numpy_helper.from_array(np.array([0, -1]), f"{node.name}_sizes")
                reshape = onnx.helper.make_node("Reshape", [node.output[0], sizes.name], [flat], f"{node.name}_flat")
                reshape.metadata_props.extend(node.metadata_props)
                graph.initializer.append(sizes)
                graph.node.insert(index + 1, reshape)
    used = {name for node in graph.node for name in node.input}
    unused = [tensor for tensor in graph.initializer if tensor.name not in used]
    for tensor in unused:
        graph.initializer.remove(tensor)


def example_input(preprocess: Preprocess) -> torch.Tensor:
    """Two zero images (2, C, H, W): the exporter would take a batch of 1 for a constant."""
    return torch.zeros(2, *preprocess.shape)


@torch.no_grad()
def output_names(net: nn.Module, example: torch.Tensor) -> list[str]:
    """A name for each tensor that the network returns, in the order in which torch flattens them.

    A tensor of a dictionary has its key, one in a tuple in it the key and its position (``box_0``); tensors of a tuple
    are ``output0``, ``output1``, ...; one tensor alone is ``logits``.
    """
    outputs = net(example)
    if isinstance(outputs, torch.Tensor):
        return ["logits"]
    names: list[str] = []
    for path, leaf in pytree.tree_flatten_with_path(outputs)[0]:
        if isinstance(leaf, torch.Tensor):
            keys = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
            start = "output" if isinstance(path[0], pytree.SequenceKey) else ""
            name = start + "_".join(keys)
            while name in (INPUT, "", *names):  # two keys may give the same name
                name += "_"
            names.append(name)
    return ["logits"] if names == ["output0"] else names


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
