"""The network that TensorRT's parser makes of an ONNX file, and what in it would not run in INT8.

Networks are strongly typed: a layer computes in the types that its inputs have in the file. So the parsed network says
before anything is built, and without a GPU, which layers can run in INT8: those whose inputs TensorRT dequantizes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from compress.engines.tensorrt.native import in_words

# These copy or select values, and TensorRT moves Q/DQ across them.
_MOVES = ("SHUFFLE", "SLICE", "SQUEEZE", "UNSQUEEZE", "GATHER", "IDENTITY", "PADDING", "POOLING MAX")
_WEIGHTED = {"CONVOLUTION": "Conv2d", "MATRIX_MULTIPLY": "Linear"}  # TensorRT has no INT8 deconvolution


@dataclass(frozen=True)
class Fault:
    """What keeps a layer from running in INT8 as it should, or a file from being read or built.

    Attributes:
        node: the ONNX node that the layer was made of; empty for the whole file.
        message: what is wrong with it; ``node`` is the beginning of the sentence.
        cause: the ONNX node of the layer that it concerns, if that is another.
        kind: the layer's type in PyTorch, if it has weights.
        index: of the node in the file's graph; -1 if it is not known.
    """

    node: str
    message: str
    cause: str = ""
    kind: str = ""
    index: int = -1


@dataclass(frozen=True)
class Parsed:
    """What TensorRT's parser made of a file.

    Attributes:
        library: the edition and version that has read it.
        layers: how many there are of each type.
        convolutions, int8: convolutions, and how many of them compute in INT8.
        faults: layers that do not run in INT8, whether they are meant to or not.
        refused: the nodes that the parser does not take, or why the builder does not.
    """

    library: str
    layers: Mapping[str, int] = field(default_factory=dict)
    convolutions: int = 0
    int8: int = 0
    faults: tuple[Fault, ...] = ()
    refused: tuple[Fault, ...] = ()

    def __str__(self) -> str:
        return f"{self.int8} of {self.convolutions} convolutions in INT8, {sum(self.layers.values())} parsed layers"

    def counts(self) -> dict[str, Any]:
        """The counts, for a sidecar."""
        return {"convolutions": self.convolutions, "int8_convolutions": self.int8, "parsed": self.layers}

    def unintended(
        self, graph: onnx.GraphProto, float_layers: Iterable[str], keep_float: Collection[str]
    ) -> tuple[Fault, ...]:
        """The faults of a file's layers, without those that are meant to stay in float.

        Args:
            float_layers: names of such layers.
            keep_float: types of layers in PyTorch that the target leaves in float.
        """
        prefixes = tuple(f"{layer}." for layer in float_layers)
        names = {name_of(node): (f"{node.name}.", *node.input[1:2]) for node in graph.node}  # the node's, its weight's
        meant = {node for node, own in names.items() if any(name.startswith(prefixes) for name in own)}
        faults = (fault for fault in self.faults if fault.kind not in keep_float)
        return tuple(fault for fault in faults if meant.isdisjoint({fault.node, fault.cause}))


def name_of(node: onnx.NodeProto) -> str:
    """The name that TensorRT's layers have from an ONNX node, which need not have one."""
    return node.name or f"node_of_{node.output[0]}"


def read_network(trt: Any, builder: Any, logger: Any, path: Path) -> tuple[Any, Any, tuple[Fault, ...]]:
    """Parse an ONNX file.

    Returns:
        the network; the parser, which holds the weights that the network refers to; the nodes that it refuses.
    """
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(path)):  # of a damaged file the parser may make a network of nothing
        return network, parser, () if network.num_outputs else (Fault("", "it has no graph that makes an output"),)
    problems = [parser.get_error(index) for index in range(parser.num_errors)]
    reasons = tuple(dict.fromkeys(map(_reason, problems)))
    return network, parser, reasons or (Fault("", in_words(logger.errors)),)


def _reason(problem: Any) -> Fault:
    """Why the parser refuses a node; its description is often only the assertion that failed."""
    what = problem.code().name.lower().replace("_", " ")
    told = " ".join(problem.desc().split())
    about = f"({problem.node_operator()}) {what}" + (f": {told}" if told not in ("", "false") else "")
    return Fault(problem.node_name(), about, index=problem.node())


def describe(trt: Any, network: Any, library: str) -> Parsed:
    """Walk a parsed network."""
    walk = _Walk(trt, network)
    convolutions = [layer for layer in walk.layers if layer.kind == "CONVOLUTION"]
    return Parsed(
        library,
        layers=dict(Counter(layer.kind for layer in walk.layers)),
        convolutions=len(convolutions),
        int8=sum(not walk.float_inputs(layer) for layer in convolutions),
        faults=tuple(walk.faults()),
    )


class _Layer:
    """A layer of a parsed network.

    Attributes:
        kind: its type, with the operation where one type has several: ``POOLING MAX``, ``ELEMENTWISE SUM``.
        node: the ONNX node that it was made of.
        inputs: those that are tensors; constants may be stored in the layer itself.
    """

    def __init__(self, trt: Any, native: Any) -> None:
        found = re.search(r"\[ONNX Layer: ([^\]]*)\]", native.metadata or "")
        self.kind, self.node = str(native.type.name), found[1] if found else str(native.name)
        inputs = [native.get_input(index) for index in range(native.num_inputs)]
        self.inputs = [tensor for tensor in inputs if tensor is not None]
        self.output = native.get_output(0)
        if self.kind == "POOLING":
            pooling = native
            pooling.__class__ = trt.IPoolingLayer  # from here on ``type`` is that of the pooling
            self.kind += f" {pooling.type.name}"
        elif self.kind == "ELEMENTWISE":
            elementwise = native
            elementwise.__class__ = trt.IElementWiseLayer
            self.kind += f" {elementwise.op.name}"


class _Walk:
    """The layers of a parsed network, by the tensors that they make."""

    def __init__(self, trt: Any, network: Any) -> None:
        self._types = trt.DataType
        layers = (_Layer(trt, network.get_layer(index)) for index in range(network.num_layers))
        self.layers = [layer for layer in layers if layer.output is not None]  # the condition of an If has none
        self._makers = {layer.output.name: layer for layer in self.layers}
        self._constants: set[str] = set()
        for layer in self.layers:  # in the order in which they compute
            if all(tensor.name in self._constants for tensor in layer.inputs):
                self._constants.add(layer.output.name)

    def faults(self) -> Iterator[Fault]:
        for layer in self.layers:
            kind, tensor = layer.kind, layer.output
            if kind in _WEIGHTED and (missing := self.float_inputs(layer)):
                verb = "are" if len(missing) > 1 else "is"
                what = f"its {' and '.join(missing)} {verb} not dequantized from int8"
                yield Fault(layer.node, f"({kind}) runs in float: {what}", kind=_WEIGHTED[kind])
            elif tensor.dtype == self._types.FLOAT and not self._may_be_float(layer):
                what = "runs in float32, as it is typed; what is not quantized must be float16"
                yield Fault(layer.node, f"({kind}) {what}")
            elif kind == "ELEMENTWISE SUM" and (conv := self._split_from(layer)) is not None:
                what = f"adds two quantized inputs: the result of convolution '{conv.node}' is rounded before it"
                yield Fault(layer.node, f"{what}; quantize only the skip input", cause=conv.node)

    def float_inputs(self, layer: _Layer) -> list[str]:
        """Which inputs of a layer with weights keep it from running in INT8; none for a product of two activations."""
        tensors = dict(zip(("input", "weight"), layer.inputs, strict=False))
        if layer.kind == "MATRIX_MULTIPLY" and not any(t.name in self._constants for t in tensors.values()):
            return []
        missing = [side for side, tensor in tensors.items() if not self._is_dequantized(tensor)]
        return missing if "weight" in tensors else [*missing, "weight"]  # one that is not a tensor is float

    def _split_from(self, add: _Layer) -> _Layer | None:
        """The convolution that feeds an addition of two quantized inputs through Q/DQ; None if there is none."""
        if all(map(self._is_dequantized, add.inputs)):
            for tensor in add.inputs:
                source = self._source(tensor)
                while source is not None and source.kind in ("QUANTIZE", "DEQUANTIZE"):
                    source = self._source(source.inputs[0])
                if source is not None and source.kind == "CONVOLUTION":
                    return source
        return None

    def _may_be_float(self, layer: _Layer) -> bool:
        """Whether float32 costs nothing: a constant, values that go into an INT8 layer, its result and its bias."""
        computed = [tensor for tensor in layer.inputs if tensor.name not in self._constants]
        if not computed or layer.kind == "DEQUANTIZE" or (layer.kind == "CAST" and layer.output.is_network_output):
            return True
        if layer.kind in (*_MOVES, *_WEIGHTED):
            return self._is_dequantized(computed[0])
        source = self._source(computed[0])
        adds_bias = layer.kind == "ELEMENTWISE SUM" and len(computed) == 1
        return adds_bias and source is not None and source.kind in _WEIGHTED

    def _is_dequantized(self, tensor: Any) -> bool:
        """Whether TensorRT can compute on the integers behind a tensor; an activation must have a single scale."""
        source = self._source(tensor)
        if source is None or source.kind != "DEQUANTIZE" or source.inputs[0].dtype != self._types.INT8:
            return False
        integers, scale = source.inputs[:2]
        return integers.name in self._constants or len(scale.shape) == 0

    def _source(self, tensor: Any) -> _Layer | None:
        """The layer that computes a tensor's values; layers that only move values are skipped. None for an input."""
        layer = self._makers.get(tensor.name)
        while layer is not None and layer.kind in _MOVES:
            layer = self._makers.get(layer.inputs[0].name)
        return layer
