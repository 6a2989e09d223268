"""The exported INT8 graph as nodes and constants that can be cut and reassembled in milliseconds.

Latency is measured on pieces of the file that ships, at hundreds of width assignments. Exporting takes seconds, so the
dense network is exported once; what is timed then has the lowering of the shipped file because it is cut out of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import fx, nn
from torch.utils import _pytree as pytree

from calibration.preprocess import Preprocess
from compress import __version__
from compress.engines.metadata import Metadata
from compress.errors import ModelError
from compress.export.half import to_half
from compress.export.lower import lower
from compress.export.onnx import INPUT, export_onnx
from compress.export.qdq import DQ, MOVES, Q, module_of
from compress.graph.tracing import trace
from compress.quantize.calibrate import calibrate
from compress.targets import profile

Array = NDArray[Any]

_IMAGES = 2  # that ranges are taken from: no scale changes a latency
_SMALL = 64  # constants that shape inference may need the values of, such as a reshape's


@dataclass(frozen=True)
class Template:
    """An ONNX graph as plain values.

    Attributes:
        nodes: in topological order.
        constants: by tensor name; each is read by one input of one node.
        inputs: shapes of the float inputs, by tensor name.
        outputs: tensor names.
        tensors: the tensor that holds the value of a node of ``compress.graph.tracing.trace``, by that node's name.
        layers: the layer that a node computes or whose weight it holds, by the node's first output.
        opset: of the operators.
    """

    nodes: tuple[NodeProto, ...]
    constants: Mapping[str, Array]
    inputs: Mapping[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    tensors: Mapping[str, str]
    layers: Mapping[str, str]
    opset: int

    @cached_property
    def producers(self) -> dict[str, NodeProto]:
        return {output: node for node in self.nodes for output in node.output}

    @cached_property
    def consumers(self) -> dict[str, list[NodeProto]]:
        found: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every computed tensor, by ONNX's shape inference."""
        return _infer(self)

    def dequantizer(self, tensor: str) -> NodeProto | None:
        """The DequantizeLinear whose values a tensor holds, seen through nodes that only move values."""
        node = self.producers.get(tensor)
        while node is not None and node.op_type in MOVES:
            node = self.producers.get(node.input[0])
        return node if node is not None and node.op_type == DQ else None

    def origin(self, tensor: str) -> NodeProto | None:
        """What computed a tensor, seen through nodes that move or quantize values; None for an input."""
        node = self.producers.get(tensor)
        while node is not None and node.op_type in (*MOVES, Q, DQ):
            node = self.producers.get(node.input[0])
        return node

    def needed(self, outputs: Iterable[str], source: str = "") -> tuple[NodeProto, ...]:
        """The nodes that compute ``outputs``, without what computes ``source``."""
        waiting, wanted = list(outputs), set[str]()
        while waiting:
            tensor = waiting.pop()
            node = self.producers.get(tensor)
            if tensor != source and node is not None and node.output[0] not in wanted:
                wanted.add(node.output[0])
                waiting += node.input
        return tuple(node for node in self.nodes if node.output[0] in wanted)

    def pruned(self) -> Template:
        """Without nodes and constants that no output needs."""
        nodes = self.needed(self.outputs)
        used = {name for node in nodes for name in node.input}
        constants = {name: value for name, value in self.constants.items() if name in used}
        return replace(self, nodes=nodes, constants=constants)

    def to_onnx(self) -> onnx.ModelProto:
        """The graph as a model with float32 inputs and outputs."""
        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in self.inputs.items()]
        outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, self.shapes[n]) for n in self.outputs]
        tensors = [numpy_helper.from_array(value, n) for n, value in self.constants.items()]
        graph = helper.make_graph(list(self.nodes), "main", inputs, outputs, tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        model.ir_version = 10
        return model


def make_template(net: nn.Module, preprocess: Preprocess, target: str, batch: int, marks: Iterable[str]) -> Template:
    """Quantize, lower and export a network with the least effort that gives the graph of the shipped file.

    Args:
        net: the trained network, in float.
        preprocess: tells the input's shape.
        target: a name in ``targets.names()``.
        batch: fixed in the graph.
        marks: nodes of ``compress.graph.tracing.trace`` whose tensors are asked for.

    Raises:
        ModelError: the network cannot be quantized or exported.
    """
    images = torch.randn(_IMAGES, *preprocess.shape, generator=torch.Generator().manual_seed(0))
    calibrated = calibrate(net, [images], target, method="minmax", correction="none")
    graph = lower(calibrated.net, calibrated.quantizers)
    named = {name: _surviving(name, trace(net, preprocess.shape).graph, graph.graph) for name in dict.fromkeys(marks)}
    own, marked = _expose(graph, sorted({node for node in named.values() if node.op != "placeholder"}, key=str))
    metadata = Metadata("", "int8", preprocess, (), 0, 0, target=target, version=__version__, float_layers=())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "template.onnx"
        export_onnx(graph, path, metadata, profile(target).opset)
        model = onnx.load(path)
    names = [output.name for output in model.graph.output]
    tensors = {mark: INPUT if node.op == "placeholder" else names[marked[node]] for mark, node in named.items()}
    del model.graph.output[own:]
    if profile(target).float_type == "float16":
        model = to_half(model)
    return _taken_apart(model, (batch, *preprocess.shape), tensors)


def _surviving(name: str, traced: fx.Graph, lowered: fx.Graph) -> fx.Node:
    """The lowered graph's node of that name; of a batch norm that was folded, the convolution's before it."""
    here: dict[str, fx.Node] = {node.name: node for node in lowered.nodes}
    nodes = {node.name: node for node in traced.nodes}
    while name not in here:
        name = nodes[name].all_input_nodes[0].name
    return here[name]


def _expose(graph: fx.GraphModule, nodes: Sequence[fx.Node]) -> tuple[int, dict[fx.Node, int]]:
    """Make the values of some nodes outputs of the graph, after its own.

    Returns:
        how many outputs are its own, and the position of each node's value among all outputs.
    """
    (end,) = (node for node in graph.graph.nodes if node.op == "output")
    own = [leaf for leaf in pytree.tree_leaves(fx.map_arg(end.args[0], lambda n: n)) if isinstance(leaf, fx.Node)]
    places = {node: own.index(node) for node in nodes if node in own}
    more = [node for node in nodes if node not in places]
    end.args = ((*own, *more),)
    graph.recompile()
    return len(own), {**places, **{node: len(own) + rank for rank, node in enumerate(more)}}


def _taken_apart(model: onnx.ModelProto, shape: tuple[int, ...], tensors: Mapping[str, str]) -> Template:
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    constants: dict[str, Array] = {}
    layers: dict[str, str] = {}
    for index, node in enumerate(model.graph.node):
        for position, name in enumerate(node.input):
            if name in held:  # each use gets its own copy, so that it can be cut for itself
                node.input[position] = own = f"{name}/{index}.{position}"
                constants[own] = held[name]
        if layer := module_of(node):
            layers[node.output[0]] = layer
        del node.metadata_props[:]
        if node.op_type == "Reshape" and (sizes := constants.get(node.input[1])) is not None and len(sizes) == 2:
            constants[node.input[1]] = np.array([shape[0], -1])  # it says the number of features
            del node.attribute[:]
    outputs = tuple(output.name for output in model.graph.output)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    template = Template(tuple(model.graph.node), constants, {INPUT: shape}, outputs, tensors, layers, opset)
    return template.pruned()


def _infer(template: Template) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors; weights go in by shape only, so that it takes milliseconds."""
    constants = template.constants
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in constants.items()}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in template.inputs.items()]
    small = {name for name, value in constants.items() if value.dtype == np.int64 and value.size <= _SMALL}
    inputs += [helper.make_tensor_value_info(n, kinds[n], v.shape) for n, v in constants.items() if n not in small]
    outputs = [helper.make_empty_tensor_value_info(name) for name in template.outputs]
    values = [numpy_helper.from_array(constants[name], name) for name in small]
    graph = helper.make_graph(list(template.nodes), "shapes", inputs, outputs, values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", template.opset)])
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(
            f"the exported graph cannot be resized: {error}",
            remedy="does its forward write down a number of channels? x.flatten(1) and broadcasting do not",
        ) from None
    known = [*inferred.value_info, *inferred.output, *inferred.input]
    return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in known}
