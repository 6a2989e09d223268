"""Cut pieces out of the exported graph as models of their own: a segment, several copies of it in a row, or none.

In the network a segment reads what an integer convolution wrote, and an integer convolution reads its result. A piece
that began with a float input would get other kernels: ONNX Runtime then keeps the residual addition in the input's
memory layout, and transposes at every block. So a piece begins and ends with a thin 1x1 convolution; what these cost
is measured by a piece of no copies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from onnx import NodeProto, TensorProto, helper

from compress.errors import ModelError
from compress.export.qdq import DQ, Q
from compress.graph.segments import Segment
from compress.probes.resize import redirected
from compress.probes.template import Array, Template

THIN = 4  # channels of a piece's input and output
_IN, _OUT = "fragment_input", "fragment_output"


def fragment(template: Template, segment: Segment, copies: int = 1) -> Template:
    """A segment as a model with float32 input and output.

    Args:
        template: at the widths that are wanted.
        copies: of the segment, one after another, each with its own weights; its result must have its source's shape.

    Raises:
        ModelError: more than its source enters the segment, or copies do not fit together.
    """
    one = _bare(template, segment)
    if copies > 1 and not repeats(template, segment):
        raise ModelError(f"'{segment.name}' cannot follow itself: its result has another shape than its source")
    chain = one
    for index in range(1, copies):
        chain = _followed(chain, _renamed(one, f"@{index}"))
    chain = _quantized_end(chain, template, template.tensors[segment.result])
    if template.tensors[segment.source] not in template.inputs:
        chain = _opened(chain, template)
    if template.tensors[segment.result] not in template.outputs:
        chain = _closed(chain, template, template.shapes[template.tensors[segment.result]])
    return chain.pruned()


def ends(template: Template, mark: str) -> Template:
    """A fragment's first and last layer around a tensor, with nothing between: what all fragments cost besides.

    Args:
        mark: a segment's source or result.
    """
    tensor = template.tensors[mark]
    shape = template.shapes[tensor]
    nothing = Template((), template.constants, {_IN: shape}, (_IN,), {}, {}, template.opset)
    graph = _quantized_end(nothing, template, tensor)
    return _closed(_opened(graph, template), template, shape).pruned()


def repeats(template: Template, segment: Segment) -> bool:
    """Whether a segment's result has the shape of its source, so that it can follow itself."""
    source, result = (template.shapes[template.tensors[mark]] for mark in (segment.source, segment.result))
    return source == result and template.tensors[segment.source] not in template.inputs


def signature(graph: Template) -> str:
    """What a fragment's latency depends on, and nothing else: equal for fragments that differ in names and values.

    Operators, attributes, shapes and types of constants, and which node reads which.
    """
    texts: dict[str, str] = {name: f"input {shape}" for name, shape in graph.inputs.items()}
    texts |= {name: f"{value.dtype} {value.shape}" for name, value in graph.constants.items()}
    for node in graph.nodes:  # a node is identified by how its value is computed, so the order does not matter
        scaled = node.op_type in (Q, DQ)  # which axis a scale goes along, its shape says
        attributes = [] if scaled else sorted(a.SerializeToString(deterministic=True).hex() for a in node.attribute)
        said = f"{node.op_type} {[texts.get(name, '') for name in node.input]} {attributes}"
        digest = hashlib.sha256(said.encode()).hexdigest()
        texts |= {name: f"{digest} {index}" for index, name in enumerate(node.output)}
    return "; ".join(texts[name] for name in graph.outputs)


def _bare(template: Template, segment: Segment) -> Template:
    """The segment's nodes, from ``_IN`` to its result as it was computed."""
    source, result = template.tensors[segment.source], template.tensors[segment.result]
    nodes = template.needed([result], source)
    inside = {output for node in nodes for output in node.output} | {source}
    outside = [n for node in nodes for n in node.input if n and n not in inside and n not in template.constants]
    if outside or not nodes:
        raise ModelError(f"'{segment.name}' cannot be measured alone: '{[*outside, result][0]}' enters it as well")
    entered = _IN
    origin = template.dequantizer(source)
    constants = dict(template.constants)
    if origin is not None:  # its source was quantized before, and only moved since
        pair, more, entered = _pair(origin, constants, _IN)
        nodes, constants = (*pair, *nodes), {**constants, **more}
    shapes = {_IN: template.shapes[source]}
    cut = Template(nodes, constants, shapes, (result,), {}, template.layers, template.opset)
    return redirected(cut, source, entered).pruned()


def _pair(
    like: NodeProto, constants: Mapping[str, Array], source: str
) -> tuple[tuple[NodeProto, ...], dict[str, Array], str]:
    """Q and DQ, with the parameters of ``like``, on ``source``; their constants; and what the DQ gives."""
    between, end = f"{source}/quantized", f"{source}/dequantized"
    nodes: list[NodeProto] = []
    own: dict[str, Array] = {}
    for kind, before, after in ((Q, source, between), (DQ, between, end)):
        names = [f"{after}/{position}" for position in range(1, len(like.input))]
        own |= {new: constants[old] for new, old in zip(names, like.input[1:], strict=True)}
        nodes.append(helper.make_node(kind, [before, *names], [after], name=after))
    return tuple(nodes), own, end


def _followed(first: Template, second: Template) -> Template:
    """``second`` on the result of ``first``."""
    nodes, constants = (*first.nodes, *second.nodes), {**first.constants, **second.constants}
    joined = replace(first, nodes=nodes, constants=constants, outputs=second.outputs)
    return redirected(joined, next(iter(second.inputs)), first.outputs[0])


def _renamed(graph: Template, suffix: str) -> Template:
    """The same graph with other tensor names."""

    def name(old: str) -> str:
        return old + suffix if old else old

    nodes = []
    for node in graph.nodes:
        copied = NodeProto()
        copied.CopyFrom(node)
        copied.name = name(node.name)
        copied.input[:], copied.output[:] = map(name, node.input), map(name, node.output)
        nodes.append(copied)
    constants = {name(key): value for key, value in graph.constants.items()}
    inputs = {name(key): shape for key, shape in graph.inputs.items()}
    outputs = tuple(map(name, graph.outputs))
    return replace(graph, nodes=tuple(nodes), constants=constants, inputs=inputs, outputs=outputs)


def _quantized_end(graph: Template, template: Template, result: str) -> Template:
    """The graph with its result quantized as the network quantizes ``result``."""
    last = graph.outputs[0]
    quantize = next((node for node in template.consumers.get(result, []) if node.op_type == Q), None)
    quantize = quantize or template.dequantizer(result)
    if quantize is None or graph.dequantizer(last) is not None:
        return graph
    pair, more, last = _pair(quantize, template.constants, last)
    return replace(graph, nodes=(*graph.nodes, *pair), constants={**graph.constants, **more}, outputs=(last,))


def _opened(graph: Template, template: Template) -> Template:
    """The graph behind a convolution that widens a thin float32 input."""
    batch, channels, *rest = graph.inputs[_IN]
    begin = f"{_IN}/float"
    nodes, constants, thin = _quantized_input(template, begin)
    conv, more = _thin_conv(template, "open", thin, f"{begin}/open", THIN, channels, rest)
    joined = redirected(graph, _IN, f"{begin}/open")
    all_nodes = (*nodes, *conv, *joined.nodes)
    inputs = {begin: (batch, THIN, *rest)}
    return replace(joined, nodes=all_nodes, constants={**joined.constants, **constants, **more}, inputs=inputs)


def _closed(graph: Template, template: Template, shape: tuple[int, ...]) -> Template:
    """The graph with a convolution that makes its result thin, and a float32 output."""
    _, channels, *rest = shape
    conv, more = _thin_conv(template, "close", graph.outputs[0], _OUT, channels, THIN, rest)
    constants = {**graph.constants, **more}
    pair, parameters, last = _pair(_any_quantizer(template), template.constants, _OUT)
    nodes = (*graph.nodes, *conv, *pair)
    if _half(template):
        nodes = (*nodes, helper.make_node("Cast", [last], [f"{last}/float"], name="end", to=TensorProto.FLOAT))
        last = f"{last}/float"
    return replace(graph, nodes=nodes, constants={**constants, **parameters}, outputs=(last,))


def _quantized_input(template: Template, begin: str) -> tuple[tuple[NodeProto, ...], dict[str, Array], str]:
    nodes: tuple[NodeProto, ...] = ()
    if _half(template):
        nodes = (helper.make_node("Cast", [begin], [f"{begin}/half"], name="begin", to=TensorProto.FLOAT16),)
        begin = f"{begin}/half"
    pair, constants, last = _pair(_any_quantizer(template), template.constants, begin)
    return (*nodes, *pair), constants, last


def _thin_conv(
    template: Template, name: str, source: str, result: str, inputs: int, outputs: int, rest: list[int]
) -> tuple[tuple[NodeProto, ...], dict[str, Array]]:
    """A 1x1 convolution with int8 weights, one scale a channel, and a float bias; a Gemm for vectors."""
    kind = np.dtype(np.float16 if _half(template) else np.float32)
    names = [f"{name}/{part}" for part in ("integers", "scale", "zero_point", "bias")]
    integers = np.random.default_rng(0).integers(-127, 128, (outputs, inputs, *[1] * len(rest))).astype(np.int8)
    scale, zeros = np.full(outputs, 0.01, kind), np.zeros(outputs, np.int8)
    constants = dict(zip(names, (integers, scale, zeros, np.zeros(outputs, kind)), strict=True))
    weight = helper.make_node(DQ, names[:3], [f"{name}/weight"], name=f"{name}/weight", axis=0)
    operands = [source, f"{name}/weight", names[3]]
    layer = helper.make_node("Conv" if rest else "Gemm", operands, [result], name=name)
    if not rest:
        layer.attribute.append(helper.make_attribute("transB", 1))
    return (weight, layer), constants


def _any_quantizer(template: Template) -> NodeProto:
    return next(node for node in template.nodes if node.op_type == Q)


def _half(template: Template) -> bool:
    return any(value.dtype == np.float16 for value in template.constants.values())
