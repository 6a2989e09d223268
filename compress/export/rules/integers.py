"""Rules about numbers: integer types, scales, zero points, weights and biases."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto

from compress.export.overflow import pairs_in_danger
from compress.export.qdq import DQ, Graph, Q, attribute
from compress.export.rules.registry import Faults, onnxruntime_runs, rule, tensorrt_runs
from compress.targets import Profile

_BYTES = ("int8", "uint8")


@rule("error")
def activation_type(graph: Graph, want: Profile) -> Faults:
    """Integer kernels take activations of 8 bits, TensorRT's int8 only; with any others a layer runs in float."""
    for node, kind in _other_activations(graph, want):
        if want.symmetric and kind == "uint8":
            what = "which the engine takes for int8: values above 127 steps are cut off"
            yield graph.label(node), f"is quantized to uint8, {what}"
        elif want.symmetric:
            what = f"is quantized to {kind}; the engine has INT8 kernels for int8 only"
            yield graph.label(node), f"{what}, and may not load the file"
        elif kind not in _BYTES:
            yield (
                graph.label(node),
                f"is quantized to {kind}, for which the engine has no integer kernels: what reads it runs in float",
            )


@rule("warning")
def foreign_activation(graph: Graph, want: Profile) -> Faults:
    """The engine runs these integers, but others suit it better."""
    for node, kind in _other_activations(graph, want):
        if kind in _BYTES and not want.symmetric:
            yield graph.label(node), f"is quantized to {kind}; this target's files have {want.activations} there"


@rule("error")
def activation_zero_point(graph: Graph, want: Profile) -> Faults:
    """TensorRT takes no zero point but 0."""
    for node in graph.activations() if want.symmetric else ():
        zero = graph.parameters(node).zero_point
        if zero is not None and zero.any():
            yield (
                graph.label(node),
                f"has zero point {zero.flat[0]}; the engine takes symmetric quantization only, with 0",
            )


@rule("error")
def relu_zero_point(graph: Graph, want: Profile) -> Faults:
    """A ReLU is fused if the least integer means 0, since the clamp to that integer then is the ReLU."""
    for node in graph.activations() if onnxruntime_runs(want) else ():
        before, p = graph.producer(node.input[0]), graph.parameters(node)
        if before is None or before.op_type != "Relu" or p.zero_point is None or p.integers not in ("int8", "uint8"):
            continue
        least = np.iinfo(p.integers).min
        if (p.zero_point != least).any():
            yield (
                graph.label(node),
                f"quantizes a ReLU's output to {p.integers} with zero point {p.zero_point.flat[0]}, not {least}: the "
                "ReLU is not fused, and the convolution before it runs in float",
            )


@rule("error", "scale above 0: calibrate again; a channel that is always 0 takes any small positive scale")
def scale(graph: Graph, want: Profile) -> Faults:
    """A scale is a finite number above 0, and known before the network runs."""
    for node in graph.of(Q, DQ):
        steps = graph.parameters(node).scale
        if steps is None:
            yield graph.label(node), "computes its scale at run time, which no engine runs in INT8"
        elif not np.isfinite(steps).all():
            yield graph.label(node), "has a scale that is NaN or infinite: everything after it is invalid"
        elif (steps <= 0).any():
            yield (
                graph.label(node),
                f"has {int((steps <= 0).sum())} scale(s) of 0 or below: the engine refuses it, or divides by 0",
            )


@rule("error")
def scale_shape(graph: Graph, want: Profile) -> Faults:
    """A constant has one scale and zero point for the whole tensor, or one for each channel."""
    for node in graph.of(Q, DQ):
        p, shape = graph.parameters(node), graph.shape(node.output[0])
        if p.scale is None:
            continue
        if p.scale.ndim > 1:
            yield graph.label(node), "has a scale for each block of values; no engine here runs that in INT8"
        elif p.axis is not None and shape and p.scale.size != (slices := _dimension(shape, p.axis)):
            what = f"has {p.scale.size} scales for the {slices} slices along axis {p.axis}"
            yield graph.label(node), f"{what}: the engine does not load it"
        elif p.zero_point is not None and p.zero_point.size != p.scale.size:
            what = f"has {p.zero_point.size} zero point(s) for {p.scale.size} scale(s)"
            yield graph.label(node), f"{what}: the engine does not load it"


@rule("error")
def activation_scale(graph: Graph, want: Profile) -> Faults:
    """Integer kernels take one scale for an activation, since a sum over channels cannot be multiplied by several."""
    for node in graph.of(Q, DQ):
        scale = graph.parameters(node).scale
        if scale is None or graph.holds_constant(node):
            continue
        if scale.size > 1:
            yield graph.label(node), f"has {scale.size} scales for an activation: what reads it runs in float"
        elif scale.ndim and tensorrt_runs(want):
            yield graph.label(node), "has a scale of shape (1,), not a single number: what reads it runs in float"


@rule("error", "give a DequantizeLinear the scale and zero point of the QuantizeLinear before it")
def pair(graph: Graph, want: Profile) -> Faults:
    """DQ must use the scale and zero point of the Q before it."""
    for node in graph.of(DQ):
        before = graph.producer(node.input[0])
        if before is not None and before.op_type == Q:
            p, q = graph.parameters(before), graph.parameters(node)
            if not p.same(q):
                yield (
                    graph.label(node),
                    f"undoes '{graph.label(before)}' with another scale or zero point: the values change",
                )


@rule("warning", "remove one of the two")
def twice(graph: Graph, want: Profile) -> Faults:
    """A DQ followed directly by a Q rounds a second time."""
    for node in graph.activations():
        before = graph.producer(node.input[0])
        if before is not None and before.op_type == DQ:
            same = graph.parameters(before).same(graph.parameters(node))
            what = "changes nothing and costs time" if same else "rounds to another grid, which costs accuracy and time"
            yield graph.label(node), f"quantizes again what '{graph.label(before)}' has just dequantized; that {what}"


@rule("warning")
def product_sums(graph: Graph, want: Profile) -> Faults:
    """TensorRT for RTX multiplies the sums of a fully connected layer by the scales after it has stored them."""
    for layer, _ in graph.weights() if "tensorrt-rtx" in want.engines else ():
        half = graph.types.get(layer.output[0]) == "float16"
        if layer.op_type in ("Gemm", "MatMul") and half and graph.is_dequantized(layer.input[0]):
            yield graph.label(layer), "gives float16: its integer sums may exceed 65504, which is infinite"


@rule("error")
def weight_type(graph: Graph, want: Profile) -> Faults:
    """Weights are signed, so that their zero point is 0 and the sums need no correction."""
    for layer, node in graph.weights():
        kind = graph.parameters(node).integers
        if kind != "int8":
            yield graph.label(layer), f"has {kind} weights; files for this target have int8 ones, with zero point 0"


@rule("warning", "quantize with this package, or with 7-bit weights (reduce_range, overflow_fix)")
def pair_sums(graph: Graph, want: Profile) -> Faults:
    """Without VNNI two products are added in saturating int16."""
    for layer, count in pairs_in_danger(graph).items() if want.pair_sums == "int16" else ():
        verb = "pair of its weights can overflow" if count == 1 else "pairs of its weights can overflow"
        yield (
            layer,
            f"may give wrong answers on a processor without VNNI, which clips sums of two products: {count} {verb}",
        )


@rule("error")
def weight_zero_point(graph: Graph, want: Profile) -> Faults:
    """With any other zero point each product would need a correction, so engines take only 0."""
    for layer, node in graph.weights():
        zero = graph.parameters(node).zero_point
        if zero is not None and zero.any():
            yield (
                graph.label(layer),
                f"has weights with zero point {zero[zero != 0].flat[0]}; they must be symmetric, with 0",
            )


@rule("error")
def weight_axis(graph: Graph, want: Profile) -> Faults:
    """A scale can be taken out of the sum over input channels only if it belongs to an output channel."""
    for layer, node in graph.weights():
        p, rank = graph.parameters(node), len(graph.shape(layer.input[1]))
        axis = None if p.scale is None or p.scale.ndim > 1 else p.axis
        outputs = _output_axis(layer, rank)
        if axis is not None and rank and axis % rank != outputs:
            what = f"a weight scale for each slice along axis {axis}, not for each output channel (axis {outputs})"
            yield graph.label(layer), f"runs in float: it has {what}"


@rule("warning")
def weight_granularity(graph: Graph, want: Profile) -> Faults:
    """One scale for all channels leaves few steps for small channels."""
    for layer, node in graph.weights():
        p = graph.parameters(node)
        channelwise = p.scale is None or p.axis is not None
        if not channelwise and want.weights == "per_channel" and max(graph.shape(layer.input[1]), default=1) > 1:
            yield (
                graph.label(layer),
                "has one scale for the whole weight; one for each output channel loses less accuracy",
            )
        elif p.axis is not None and want.weights == "per_tensor":
            yield graph.label(layer), "has a weight scale per channel; the target takes one for the whole layer"


@rule("error")
def integer_bias(graph: Graph, want: Profile) -> Faults:
    """TensorRT dequantizes int8, not int32: it adds a float bias."""
    for node in graph.of(DQ) if tensorrt_runs(want) else ():
        if graph.parameters(node).integers == "int32":
            yield graph.label(node), "dequantizes an int32 bias, which the engine does not load; it takes a float bias"


@rule("warning")
def float_bias(graph: Graph, want: Profile) -> Faults:
    """ONNX Runtime computes a fully connected layer in integers only if its bias is int32."""
    for layer, _ in graph.weights() if want.integer_bias else ():
        if layer.op_type == "Gemm" and len(layer.input) > 2 and not graph.is_dequantized(layer.input[2]):
            yield graph.label(layer), "has a float bias: the engine dequantizes all of its weights at every run"


def _other_activations(graph: Graph, want: Profile) -> Iterator[tuple[NodeProto, str]]:
    """The Q nodes to another integer type than the target's, with that type."""
    for node in graph.activations():
        kind = graph.parameters(node).integers
        if kind not in ("", want.activations):
            yield node, kind


def _dimension(shape: tuple[int, ...], axis: int) -> int:
    """The length of an axis; 0 if there is no such axis."""
    return shape[axis] if -len(shape) <= axis < len(shape) else 0


def _output_axis(layer: NodeProto, rank: int) -> int:
    """The axis of a weight that runs over output channels."""
    if layer.op_type == "MatMul":
        return rank - 1
    if layer.op_type == "ConvTranspose" or (layer.op_type == "Gemm" and not attribute(layer, "transB", 0)):
        return 1
    return 0
