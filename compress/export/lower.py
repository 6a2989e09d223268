"""Lower quantizers to graph operations that the ONNX exporter knows: QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, fx, nn

# Importing it registers the quantized_decomposed operators, which the exporter translates to Q/DQ. The exporter does
# not translate torch.fake_quantize_* with a dynamic batch.
from torch.ao.quantization.fx import _decomposed  # noqa: F401
from torch.nn.utils import parametrize

from compress.quantize.fakequant import insert
from compress.quantize.graph import layer_of, operation
from compress.quantize.quantizable import QUANTIZED, WEIGHTED
from compress.quantize.quantizer import WEIGHT_HIGH, Activation, Quantizers, Weight
from compress.quantize.rounding import quantize_weight
from compress.targets import profile

_OPS = torch.ops.quantized_decomposed


class _QuantizeDequantize(nn.Module):
    def __init__(self, q: Activation) -> None:
        super().__init__()
        self.quantizer = q
        dtype = torch.int8 if q.low < 0 else torch.uint8
        self.parameters_ = (q.scale, q.zero_point, q.low, q.high, dtype)

    def forward(self, x: Tensor) -> Tensor:
        integers = _OPS.quantize_per_tensor(x, *self.parameters_)
        result: Tensor = _OPS.dequantize_per_tensor(integers, *self.parameters_)
        return result


class _Dequantize(nn.Module):
    """The weight's integers, dequantized; the float weight itself is not exported."""

    integers: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, q: Weight, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("integers", quantize_weight(q, weight))
        self.register_buffer("scale", torch.tensor(q.scale))
        self.register_buffer("zero_point", torch.zeros(len(q.scale), dtype=torch.int8))

    def forward(self, weight: Tensor) -> Tensor:
        result: Tensor = _OPS.dequantize_per_channel(
            self.integers, self.scale, self.zero_point, 0, -WEIGHT_HIGH, WEIGHT_HIGH, torch.int8
        )
        return result


class _DequantizeBias(nn.Module):
    """A bias as int32 in steps of input scale * weight scale, as integer arithmetic adds it to its accumulator."""

    integers: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, bias: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("integers", (bias / scale).round().to(torch.int32))
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros(len(scale), dtype=torch.int32))

    def forward(self, bias: Tensor) -> Tensor:
        bounds = torch.iinfo(torch.int32)
        result: Tensor = _OPS.dequantize_per_channel(
            self.integers, self.scale, self.zero_point, 0, bounds.min, bounds.max, torch.int32
        )
        return result


def lower(net: nn.Module, quantizers: Quantizers) -> fx.GraphModule:
    """A copy of the BN-folded ``net`` with Q/DQ operations and int8 weights; ``fake_quantized`` simulates it.

    The bias is int32 if the target computes fully connected layers in integers only then.
    """
    graph = insert(net, quantizers, _QuantizeDequantize, _Dequantize)
    _fence(graph, {w.layer for w in quantizers.weights})
    if not profile(quantizers.target).float_output:
        _quantize_moved(graph, {w.layer for w in quantizers.weights})
    if profile(quantizers.target).integer_bias:
        scales = {w.layer: torch.tensor(w.scale) for w in quantizers.weights}
        for node in graph.graph.nodes:
            layer = layer_of(graph, node)
            step = _input_scale(graph, node)
            if isinstance(layer, nn.Linear) and isinstance(layer.bias, Tensor) and node.target in scales and step:
                bias = _DequantizeBias(layer.bias.detach(), scales[node.target] * step)
                parametrize.register_parametrization(layer, "bias", bias)
    return graph.eval()


def _fence(graph: fx.GraphModule, quantized: Collection[str]) -> None:
    """Put a clamp that changes nothing between a quantizer and a layer that is to stay in float.

    Otherwise ONNX Runtime would quantize the layer's weights by itself, with one scale for all of them.
    """
    for node in list(graph.graph.nodes):
        if isinstance(layer_of(graph, node), WEIGHTED) and node.target not in quantized:
            (source,) = node.all_input_nodes
            quantizer, _ = _behind_moves(graph, node)
            before = None if quantizer is None else layer_of(graph, quantizer)
            if isinstance(before, _QuantizeDequantize):
                with graph.graph.inserting_before(node):
                    fence = graph.graph.call_function(torch.clamp, (source, *before.quantizer.range))
                node.replace_input_with(source, fence)
    graph.recompile()


def _quantize_moved(graph: fx.GraphModule, quantized: Collection[str]) -> None:
    """Repeat a quantizer before a layer where operations that only move values stand between, for all of its readers.

    It changes no value. ONNX Runtime fuses a layer with the Q/DQ that it reads directly; it moves Q/DQ across some of
    these operations, but not across a padding, a slice or a reshape whose sizes are computed.
    """
    for node in list(graph.graph.nodes):
        if isinstance(layer_of(graph, node), QUANTIZED) and node.target in quantized:
            (moved,) = node.all_input_nodes
            quantizer, operators = _behind_moves(graph, node)
            if quantizer is not None and operators:
                with graph.graph.inserting_after(moved):
                    again = graph.graph.call_module(str(quantizer.target), (moved,))
                moved.replace_all_uses_with(again, lambda user, new=again: user is not new)
    graph.recompile()


def _input_scale(graph: fx.GraphModule, node: fx.Node) -> float | None:
    """The scale of a node's input, through operations that only move values; None if the input is float."""
    quantizer, _ = _behind_moves(graph, node)
    module = None if quantizer is None else layer_of(graph, quantizer)
    return module.quantizer.scale if isinstance(module, _QuantizeDequantize) else None


def _behind_moves(graph: fx.GraphModule, node: fx.Node) -> tuple[fx.Node | None, list[str]]:
    """The quantizer of a node's input, behind operations that only move values; None if the input is float.

    Returns:
        the quantizer, and the ONNX operators that stand between: none for a dropout, which does nothing in eval mode.
    """
    operators: list[str] = []
    while node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        if isinstance(layer_of(graph, node), _QuantizeDequantize):
            return node, operators
        row = operation(graph, node)
        if row is None or not row.moves:
            break
        operators += row.onnx
    return None, operators
