"""The exported graph at other widths, and without whole blocks, as pruning, quantizing and exporting would give it.

Scales are those of the dense network, so a resized graph computes something close to the pruned network at best; it
has its operators and its shapes, and so its latency.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnx import NodeProto

from compress.errors import ModelError
from compress.export.qdq import CLAMPS, DQ, LAYERS, Q, attribute
from compress.graph.groups import Coupling
from compress.graph.segments import Segment
from compress.probes.template import Array, Template
from compress.prune.surgery import removed_positions


def resized(template: Template, coupling: Coupling, kept: Mapping[str, Sequence[int]]) -> Template:
    """Keep only some units of some groups in the graph.

    Args:
        template: of the dense network.
        coupling: of the same network.
        kept: unit indices by group name; a group that is not named keeps all.

    Raises:
        ModelError: see ``compress.prune.surgery.cut``.
    """
    removed_inputs, removed_outputs = removed_positions(coupling, kept)
    constants, nodes = dict(template.constants), list(template.nodes)
    for index, node in enumerate(nodes):
        layer = template.layers.get(node.output[0], "")
        gone_in, gone_out = removed_inputs.get(layer, set()), removed_outputs.get(layer, set())
        if not (gone_in or gone_out):
            continue
        if node.op_type in LAYERS:
            nodes[index] = _resized_layer(template, node, constants, gone_in, gone_out)
        elif node.op_type == "Gather":
            constants[node.input[1]] = _without(constants[node.input[1]], gone_out, 0)
            constants[node.input[1]] = _moved_up(constants[node.input[1]], gone_in)
        elif node.op_type == "Mul":
            _cut(constants, (name for name in node.input if name in constants), gone_out, axis=1)
        elif node.op_type == "BatchNormalization":
            _cut(constants, node.input[1:], gone_out, axis=0)
    return replace(template, nodes=tuple(nodes), constants=constants)


def without(template: Template, removed: Iterable[Segment]) -> Template:
    """Remove some removable blocks from the graph: the readers of their result read their source instead."""
    for segment in removed:
        if not segment.removable:
            raise ModelError(f"'{segment.name}' cannot be removed: its shortcut is not the identity")
        source, result = template.tensors[segment.source], template.tensors[segment.result]
        last, before = template.producers[result], template.origin(source)
        if last.op_type in CLAMPS and (before is None or before.op_type != last.op_type):
            result = last.input[0]  # what was not clamped before the block is clamped after it still
        template = redirected(template, result, source)
    return template.pruned()


def redirected(template: Template, old: str, new: str) -> Template:
    """The graph with ``new`` read in the place of ``old``, quantized once where both are."""
    renamed = {old: new}
    if template.dequantizer(new) is not None:  # its values lie on a grid: they are not put on another
        for quantize in template.consumers.get(old, []):
            if quantize.op_type == Q:
                renamed |= {dq.output[0]: new for dq in template.consumers[quantize.output[0]] if dq.op_type == DQ}
    nodes = tuple(_reading(node, renamed) for node in template.nodes)
    outputs = tuple(renamed.get(name, name) for name in template.outputs)
    tensors = {mark: renamed.get(name, name) for mark, name in template.tensors.items()}
    return replace(template, nodes=nodes, outputs=outputs, tensors=tensors)


def _reading(node: NodeProto, renamed: Mapping[str, str]) -> NodeProto:
    if not any(name in renamed for name in node.input):
        return node
    copied = NodeProto()
    copied.CopyFrom(node)
    copied.input[:] = [renamed.get(name, name) for name in node.input]
    return copied


def _resized_layer(
    template: Template, node: NodeProto, constants: dict[str, Array], gone_in: set[int], gone_out: set[int]
) -> NodeProto:
    """Cut a convolution's or matrix product's weight and bias, quantized or not, in ``constants``."""
    out_axis = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1
    weight = _held(template, node.input[1])
    for name in weight:
        value = template.constants[name]
        cut = _without(value, gone_out, out_axis if value.ndim > 1 else 0)
        groups = attribute(node, "group", 1)
        if value.ndim > 1 and groups == 1:
            cut = _without(cut, gone_in, 1 - out_axis)
        elif value.ndim > 1:  # whole groups went, on both sides
            inputs = value.shape[1] * groups
            gone = gone_in or gone_out  # a batch norm, which is cut at its outputs, became a depthwise convolution
            node = _with_groups(node, (inputs - len(gone)) * groups // inputs)
        constants[name] = cut
    for name in _held(template, node.input[2]) if len(node.input) > 2 else ():
        constants[name] = _without(template.constants[name], gone_out, 0)
    return node


def _held(template: Template, tensor: str) -> tuple[str, ...]:
    """The constants that make up a weight or bias: itself, or integers, scales and zero points before a DQ."""
    if tensor in template.constants:
        return (tensor,)
    node = template.producers.get(tensor)
    if node is None:
        return ()
    return tuple(held for name in node.input for held in _held(template, name))


def _with_groups(node: NodeProto, groups: int) -> NodeProto:
    copied = NodeProto()
    copied.CopyFrom(node)
    for item in copied.attribute:
        if item.name == "group":
            item.i = groups
    return copied


def _cut(constants: dict[str, Array], names: Iterable[str], gone: set[int], axis: int) -> None:
    for name in names:
        constants[name] = _without(constants[name], gone, axis)


def _without(value: Array, gone: set[int], axis: int) -> Array:
    """Without some positions along an axis; a tensor that has one entry for all of them stays as it is."""
    if not gone or value.ndim <= axis or value.shape[axis] == 1:
        return value
    return np.delete(value, sorted(gone), axis=axis)


def _moved_up(index: Array, gone: set[int]) -> Array:
    """A shortcut's source channels after some went; one whose source went is gated to zero and may read any."""
    before = np.searchsorted(sorted(gone), index)
    return np.where(np.isin(index, list(gone)), 0, index - before)
