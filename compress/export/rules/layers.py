"""Rules about layers: which of them run in INT8, and which fuse."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto

from compress.export.qdq import DQ, LAYERS, MOVES, Graph, Q
from compress.export.rules.registry import Faults, onnxruntime_runs, rule, tensorrt_runs
from compress.targets import Profile

KEEP = "quantize it too, or name it among the layers that stay float"


@rule("error", KEEP)
def float_layer(graph: Graph, want: Profile) -> Faults:
    """A layer runs in INT8 if its input and its weight both come from a DequantizeLinear."""
    for node in graph.layers():
        if LAYERS[node.op_type] in want.keep_float or node.op_type == "ConvTranspose":  # no integer kernel has it
            continue
        missing = [
            role
            for role, tensor in zip(("input", "weight"), node.input[:2], strict=True)
            if not graph.is_dequantized(tensor)
        ]
        if missing == ["weight"] and onnxruntime_runs(want):
            yield graph.label(node), f"({node.op_type}) has a float weight: the engine chooses a scale for it by itself"
        elif missing:
            verb = "are" if len(missing) == 2 else "is"
            yield graph.label(node), f"({node.op_type}) runs in float: its {' and '.join(missing)} {verb} not quantized"


@rule("error")
def convolution_output(graph: Graph, want: Profile) -> Faults:
    """ONNX Runtime fuses DQ, convolution, ReLU and Q into one integer kernel; without the Q it fuses none of them."""
    for node in graph.layers() if onnxruntime_runs(want) else ():
        tensor = graph.after_clamp(node)
        if node.op_type != "Conv" or tensor in graph.outputs:
            continue
        users = graph.consumers(tensor)
        floats = [user for user in users if user.op_type != Q]
        if floats:
            yield (
                graph.label(node),
                f"runs in float: its output goes to '{graph.label(floats[0])}' with no QuantizeLinear between",
            )
        elif any(not graph.parameters(user).same(graph.parameters(users[0])) for user in users):
            yield graph.label(node), "runs in float: its output is quantized twice, with different scales"


@rule("error")
def mixed_integers(graph: Graph, want: Profile) -> Faults:
    """ONNX Runtime's kernels go from uint8 to uint8 or from int8 to int8."""
    for node, inputs in [*_convolutions(graph), *_adds(graph)] if onnxruntime_runs(want) else ():
        before = [_quantizer(graph, tensor) for tensor in inputs]
        after = [user for user in graph.consumers(graph.after_clamp(node)) if user.op_type == Q]
        kinds = {_integers_at_run_time(graph, q, want) for q in [*before, *after] if q is not None}
        if len(kinds) > 1:
            yield graph.label(node), f"runs in float: its inputs and output mix {' and '.join(sorted(kinds))}"


@rule("warning", "expect this layer in float, or quantize the output")
def float_output(graph: Graph, want: Profile) -> Faults:
    """The output of the network has no Q after it that could be fused."""
    for node, _ in [*_convolutions(graph), *_adds(graph)] if onnxruntime_runs(want) else ():
        if graph.after_clamp(node) in graph.outputs:
            yield (
                graph.label(node),
                "computes an output of the network, which is not quantized: the engine runs it in float",
            )


@rule("warning")
def residual_add(graph: Graph, want: Profile) -> Faults:
    """ONNX Runtime adds integers if both inputs are quantized."""
    for node, inputs in _adds(graph) if want.add == "both" else ():
        missing = [tensor for tensor in inputs if not graph.is_dequantized(tensor)]
        residual = len(missing) < len(inputs) or any(_is_convolution(graph.origin(tensor)) for tensor in inputs)
        if missing and residual:  # else it is one of several float operations, as inside a pooling to an odd size
            yield graph.label(node), f"adds in float: {len(missing)} of its 2 inputs is not quantized ('{missing[0]}')"


@rule("error")
def residual_fusion(graph: Graph, want: Profile) -> Faults:
    """TensorRT and OpenVINO fuse convolution, add and ReLU if nothing is between them."""
    for node, inputs in _adds(graph) if want.add == "skip" else ():
        sources = [graph.source(tensor) for tensor in inputs]
        origins = [graph.origin(tensor) for tensor in inputs]
        if any(_is_convolution(source) for source in sources):
            continue
        convs = [origin for origin in origins if origin is not None and _is_convolution(origin)]
        if convs:
            what = f"has Q/DQ between it and convolution '{graph.label(convs[0])}' that feeds it: the two do not fuse"
            yield graph.label(node), f"{what}, or fuse without the Q/DQ; quantize only the skip input"


@rule("warning")
def residual_skip(graph: Graph, want: Profile) -> Faults:
    """Reading a float skip input takes two or four times the bytes."""
    for node, inputs in _adds(graph) if want.add == "skip" else ():
        residual = any(_is_convolution(graph.origin(tensor)) for tensor in inputs)
        if residual and not any(graph.is_dequantized(tensor) for tensor in inputs):
            yield graph.label(node), "has no quantized input: the skip connection is float"


@rule("warning")
def float_pool(graph: Graph, want: Profile) -> Faults:
    """Pooling has integer kernels, if Q/DQ are around it. TensorRT moves a Q across a MaxPool by itself."""
    for node in graph.of("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean"):
        before, users = graph.source(node.input[0]), graph.consumers(node.output[0])
        leads = any(user.op_type in (Q, *MOVES) for user in users)
        if before is None or before.op_type != DQ:
            moves = node.op_type == "MaxPool" and tensorrt_runs(want)
            if not moves and any(user.op_type == Q for user in users):
                yield (
                    graph.label(node),
                    f"({node.op_type}) pools float values that are quantized after it; quantize them before",
                )
        elif node.op_type != "MaxPool" and onnxruntime_runs(want) and not leads:
            yield graph.label(node), f"({node.op_type}) runs in float: its input is quantized, but its output is not"
        elif node.op_type == "ReduceMean" and onnxruntime_runs(want):
            yield (
                graph.label(node),
                "(ReduceMean) has no integer kernel; over height and width it should be a GlobalAveragePool",
            )


@rule("warning", "set prune.multiple to round widths to a multiple (the latency table shows the steps)")
def channel_width(graph: Graph, want: Profile) -> Faults:
    """Kernels compute channels in blocks; a partial block costs as much as a whole one."""
    step = 32 if tensorrt_runs(want) else 4
    for layer, _ in graph.weights():
        shape = graph.shape(layer.input[1])
        if layer.op_type != "Conv" or not shape or not (over := shape[0] % step):
            continue
        if shape[0] % 4:
            yield (
                graph.label(layer),
                f"has {shape[0]} output channels, not a multiple of 4: it may be slower than a wider layer",
            )
        else:
            yield (
                graph.label(layer),
                f"has {shape[0]} output channels: the last {over} of them cost as much as {step} would",
            )


def _convolutions(graph: Graph) -> Iterator[tuple[NodeProto, list[str]]]:
    """The convolutions that are to run in INT8, each with its input."""
    return ((node, [node.input[0]]) for node in graph.layers() if node.op_type == "Conv")


def _is_convolution(node: NodeProto | None) -> bool:
    return node is not None and node.op_type == "Conv"


def _quantizer(graph: Graph, tensor: str) -> NodeProto | None:
    """The Q node that ``tensor`` was quantized by."""
    node = graph.source(tensor)
    before = graph.source(node.input[0]) if node is not None and node.op_type == DQ else None
    return before if before is not None and before.op_type == Q else None


def _integers_at_run_time(graph: Graph, q: NodeProto, want: Profile) -> str:
    """On x86 ONNX Runtime turns int8 into uint8 when it loads a file, but only for a tensor with one reader."""
    kind = graph.parameters(q).integers
    return "uint8" if kind == "int8" and want.activations == "uint8" and len(graph.readers(q)) < 2 else kind


def _adds(graph: Graph) -> Iterator[tuple[NodeProto, list[str]]]:
    """The additions of two computed tensors, except those whose input comes from a layer meant to stay in float."""
    for node in graph.of("Add"):
        inputs = list(node.input)
        floats = any(graph.stays_float(graph.origin(tensor)) for tensor in inputs)
        if not floats and not any(graph.constant_behind(tensor) for tensor in inputs):
            yield node, inputs
