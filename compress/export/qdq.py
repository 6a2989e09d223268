"""An ONNX graph as quantization sees it: layers, the Q and DQ nodes around them, and how they are connected."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from compress.frontend.ops import MOVES_IN_ONNX

Array = NDArray[Any]

Q, DQ = "QuantizeLinear", "DequantizeLinear"
LAYERS = {"Conv": "Conv2d", "ConvTranspose": "ConvTranspose2d", "Gemm": "Linear", "MatMul": "Linear"}
CLAMPS = ("Relu", "Clip")
MOVES = MOVES_IN_ONNX
MODULE = "compress.module"  # the property of a node that names the module which made it


def module_of(node: NodeProto) -> str | None:
    """The module whose forward made a node, as this package or PyTorch's exporter recorded it; None if neither did.

    >>> module_of(onnx.helper.make_node("Relu", ["x"], ["y"])) is None
    True
    """
    notes: dict[str, str] = {prop.key: prop.value for prop in node.metadata_props}
    if MODULE in notes:
        return notes[MODULE]
    scopes = notes.get("pkg.torch.onnx.name_scopes")
    names = ast.literal_eval(scopes) if scopes else []
    return str(names[-2]) if len(names) > 1 else None


@dataclass(frozen=True)
class Parameters:
    """The parameters of a Q or DQ node: x ~ scale * (q - zero_point).

    Attributes:
        scale: a number, or one for each slice along ``axis``; None if it is not a constant.
        zero_point: of the same shape; None if it is not a constant.
        integers: element type of q, such as ``uint8``; empty if it is not known.
        axis: None for one scale for the whole tensor.
    """

    scale: Array | None
    zero_point: Array | None
    integers: str
    axis: int | None

    def same(self, other: Parameters) -> bool:
        """Whether both map the same integers to the same values."""
        return (
            self.integers == other.integers
            and _equal(self.scale, other.scale)
            and _equal(self.zero_point, other.zero_point)
        )


class Graph:
    """Read-only view of a model.

    Args:
        model: with all of its data inside.
        float_layers: layers meant to stay in float, by the first part of the names of their nodes or initializers.
        external: names of the tensors that are stored outside of the file.
    """

    def __init__(
        self, model: onnx.ModelProto, float_layers: Collection[str] = (), external: Collection[str] = ()
    ) -> None:
        self.model, self.nodes, self.external = model, tuple(model.graph.node), tuple(external)
        self.opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
        self._float_layers = tuple(float_layers)
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self._tensors[node.output[0]] = node.attribute[0].t
            elif node.op_type == "Identity" and node.input[0] in self._tensors:
                self._tensors[node.output[0]] = self._tensors[node.input[0]]
        self._producers = {output: node for node in self.nodes for output in node.output if output}
        self._consumers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self._consumers.setdefault(name, []).append(node)
        self.outputs = frozenset(value.name for value in model.graph.output)

    def of(self, *kinds: str) -> Iterator[NodeProto]:
        """The nodes of these operator types, in the graph's order."""
        return (node for node in self.nodes if node.op_type in kinds)

    def producer(self, tensor: str) -> NodeProto | None:
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> list[NodeProto]:
        return self._consumers.get(tensor, [])

    def is_constant(self, tensor: str) -> bool:
        return tensor in self._tensors

    def constant(self, tensor: str) -> Array | None:
        """The value of an initializer or a Constant node, also behind an Identity."""
        return numpy_helper.to_array(self._tensors[tensor]) if tensor in self._tensors else None

    def source(self, tensor: str) -> NodeProto | None:
        """The node that computes the values of ``tensor``, skipping nodes that only move values."""
        node = self.producer(tensor)
        while node is not None and node.op_type in MOVES:
            node = self.producer(node.input[0])
        return node

    def is_dequantized(self, tensor: str) -> bool:
        """Whether the values of ``tensor`` come from a DequantizeLinear."""
        node = self.source(tensor)
        return node is not None and node.op_type == DQ

    def is_int8(self, node: NodeProto) -> bool:
        """Whether a node is a layer whose input and weight are both dequantized, so that engines compute it in INT8."""
        return node.op_type in LAYERS and all(map(self.is_dequantized, node.input[:2]))

    def constant_behind(self, tensor: str) -> bool:
        """Whether ``tensor`` is a constant, quantized or not."""
        return self.is_constant(self._behind(tensor))

    def origin(self, tensor: str) -> NodeProto | None:
        """The node that computed ``tensor``, before a Q/DQ pair if there is one."""
        node = self.source(tensor)
        while node is not None and node.op_type in (Q, DQ):
            node = self.source(node.input[0])
        return node

    def readers(self, node: NodeProto) -> list[NodeProto]:
        """The nodes that compute with the values of a Q node, skipping its DQs and nodes that only move values."""
        through = (DQ, *MOVES)
        users = [user for output in node.output for user in self.consumers(output)]
        return [end for user in users for end in (self.readers(user) if user.op_type in through else [user])]

    def after_clamp(self, node: NodeProto) -> str:
        """The output tensor of ``node``, after the ReLU if a ReLU is its only reader."""
        tensor: str = node.output[0]
        while tensor not in self.outputs and len(users := self.consumers(tensor)) == 1 and users[0].op_type in CLAMPS:
            tensor = users[0].output[0]
        return tensor

    def label(self, node: NodeProto) -> str:
        """A node's name (or its output's, if it has none), with the layer that its weight or bias names."""
        name = node.name or node.output[0]
        layer = next((found for tensor in self._held(node) if (found := _layer_of(tensor))), "")
        return f"{name} ({layer})" if layer and layer not in name else name

    def _held(self, node: NodeProto) -> Iterator[str]:
        """Names of a layer's weight and bias, before their Q/DQ."""
        tensors = [self._behind(tensor) for tensor in node.input[1:3]] if node.op_type in LAYERS else []
        return (tensor for tensor in tensors if self.is_constant(tensor))

    def _behind(self, tensor: str) -> str:
        """The tensor that is quantized by the Q/DQ right before ``tensor``."""
        while (node := self.producer(tensor)) is not None and node.op_type in (Q, DQ):
            tensor = node.input[0]
        return tensor

    def holds_constant(self, node: NodeProto) -> bool:
        """Whether a Q or DQ belongs to a weight or bias: its input is a constant, or a Q of one."""
        return self.is_constant(self._behind(node.output[0]))

    def activations(self) -> Iterator[NodeProto]:
        """The QuantizeLinear nodes on tensors that are computed."""
        return (node for node in self.of(Q) if not self.holds_constant(node))

    def layers(self) -> Iterator[NodeProto]:
        """Convolutions and products with a weight, except those that are meant to stay in float."""
        nodes = (node for node in self.of(*LAYERS) if node.op_type != "MatMul" or self.constant_behind(node.input[1]))
        return (node for node in nodes if not self.stays_float(node))

    def weights(self) -> Iterator[tuple[NodeProto, NodeProto]]:
        """(layer, DQ of its weight) for each layer whose weight is quantized."""
        for layer in self.of(*LAYERS):
            node = self.producer(layer.input[1])
            if node is not None and node.op_type == DQ and self.holds_constant(node):
                yield layer, node

    def stays_float(self, node: NodeProto | None) -> bool:
        """Whether a layer is among those that are meant to stay in float."""
        if node is None or not self._float_layers:
            return False
        return any(_begins(name, prefix) for name in (node.name, *self._held(node)) for prefix in self._float_layers)

    def parameters(self, node: NodeProto) -> Parameters:
        """Of a Q or DQ node."""
        scale = self.constant(node.input[1])
        given = node.input[2] if len(node.input) > 2 else ""
        zero = self.constant(given) if given else None
        if zero is not None:
            kind = _type_name(self._tensors[given].data_type)
        elif node.op_type == Q and (asked := attribute(node, "output_dtype", 0)):
            kind = _type_name(asked)
        elif node.op_type == DQ and node.input[0] in self._tensors:
            kind = _type_name(self._tensors[node.input[0]].data_type)
        else:
            before = self.producer(node.input[0])
            follows = node.op_type == DQ and before is not None and before.op_type == Q
            kind = self.parameters(before).integers if follows and before else "" if given else "uint8"
        if not given and scale is not None:
            zero = np.zeros(scale.shape, np.int32)
        axis = attribute(node, "axis", 1) if scale is not None and scale.size > 1 else None
        return Parameters(scale, zero, kind, axis)

    @cached_property
    def types(self) -> dict[str, str]:
        """Element type of each computed tensor that ONNX's type inference knows, such as ``float32``."""
        graph = onnx.shape_inference.infer_shapes(self.model).graph
        values = [*graph.value_info, *graph.output, *graph.input]
        return {value.name: _type_name(value.type.tensor_type.elem_type) for value in values}

    @cached_property
    def type_error(self) -> tuple[str, str]:
        """The name of the first node with inputs of types that ONNX forbids, and what is wrong; empty if none has."""
        bare = onnx.ModelProto()
        bare.CopyFrom(self.model)
        del bare.graph.value_info[:]  # notes of other tools, which need not be right
        try:
            onnx.shape_inference.infer_shapes(bare, check_type=True)
        except onnx.shape_inference.InferenceError as error:
            found = re.search(r"\(op_type:(\w+), node name: (.*?)\): ([^\n]*)", str(error))
            return (found[2], f"({found[1]}) {found[3]}") if found else ("types", str(error))
        return "", ""

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Shape of a constant, or of the constant before a DQ or Q/DQ before ``tensor``; empty if there is none."""
        tensor = self._behind(tensor)
        return tuple(self._tensors[tensor].dims) if tensor in self._tensors else ()


def attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _equal(a: Array | None, b: Array | None) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)


def _layer_of(tensor: str) -> str:
    """The layer that a parameter tensor belongs to, as torch names it; empty if the name does not say.

    >>> _layer_of("layer1.0.conv1.weight")
    'layer1.0.conv1'
    """
    found = re.match(r"(.+?)\.(parametrizations|weight|bias)\b", tensor)
    return found[1] if found else ""


def _begins(name: str, prefix: str) -> bool:
    """Whether ``name`` is ``prefix`` or something inside it: layer10 does not begin with layer1."""
    rest = name.removeprefix(prefix)
    return name.startswith(prefix) and not rest[:1].isalnum()


def _type_name(data_type: int) -> str:
    name: str = TensorProto.DataType.Name(cast(Any, data_type)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)
