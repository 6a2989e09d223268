"""Rules about the file as a whole: types, opset, and where its data is stored."""

from __future__ import annotations

import onnx

from compress.export.qdq import Graph
from compress.export.rules.registry import Faults, rule, tensorrt_runs
from compress.targets import Profile

# The standard operators that its parser lacks, as far as networks for images may have them.
UNKNOWN_TO_TENSORRT = frozenset(
    {"Col2Im", "ConvInteger", "DeformConv", "DynamicQuantizeLinear", "MatMulInteger", "MaxRoiPool", "MaxUnpool"}
)


@rule("error", "export again with `--set target.name={target}`")
def float_type(graph: Graph, want: Profile) -> Faults:
    """What is not quantized runs in the type that the file gives it; a layer in INT8 may have a result of any."""
    unchecked = {"Cast", "Constant", "QuantizeLinear"}
    for node in graph.nodes:
        kind = graph.types.get(node.output[0], "")
        floats = kind.startswith(("float", "bfloat")) and node.op_type not in unchecked
        if floats and kind != want.float_type and not graph.is_dequantized(node.output[0]) and not graph.is_int8(node):
            yield graph.label(node), f"has type {kind} ({node.op_type}) and runs so; the target wants {want.float_type}"


@rule("error", "put a Cast inside the file instead")
def interface_type(graph: Graph, want: Profile) -> Faults:
    """Callers pass float32 images and read float32 results, whatever the types inside."""
    given = {tensor.name for tensor in graph.model.graph.initializer}
    for value in [*graph.model.graph.input, *graph.model.graph.output]:
        kind = graph.types.get(value.name, "")
        if value.name not in given and kind != "float32":
            yield value.name, f"is an input or output of type {kind}; callers pass and read float32"


@rule("error", "put a Cast before the node, or export again")
def node_types(graph: Graph, want: Profile) -> Faults:
    """ONNX allows few operators to mix types."""
    node, reason = graph.type_error
    if reason:
        yield node or "a node without a name", f"{reason}, which ONNX forbids: an engine may refuse the file"


@rule("error", "replace it with standard operators")
def operator(graph: Graph, want: Profile) -> Faults:
    """TensorRT's parser knows operators by name, in whatever domain, and asks its plug-ins for any others."""
    for node in graph.nodes if tensorrt_runs(want) else ():
        if node.op_type in UNKNOWN_TO_TENSORRT or not onnx.defs.has(node.op_type):
            yield (
                graph.label(node),
                f"({node.op_type}) is an operator that the engine does not have: the file does not load",
            )


@rule("warning", "export the network without branches")
def branch(graph: Graph, want: Profile) -> Faults:
    """These rules see the outer graph only."""
    for node in graph.nodes:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            yield graph.label(node), f"({node.op_type}) has operators inside, which are not checked"


@rule("error", "export again with opset {opset}")
def opset(graph: Graph, want: Profile) -> Faults:
    """Scales per channel came with opset 13, float16 scales with 19, 16 and 4 bit integers with 21."""
    version = graph.opset
    halves = any(tensor.data_type == tensor.FLOAT16 for tensor in graph.model.graph.initializer)
    least = 19 if halves or want.float_type == "float16" else 13
    signed = any(graph.parameters(node).integers == "int8" for node in graph.activations())
    if version < least:
        yield "opset", f"is {version}; ONNX has Q/DQ of this kind from {least} on"
    elif version > want.opset and version >= 21 and signed and "onnxruntime" in want.engines:
        yield "opset", f"is {version}; ONNX Runtime on x86 does not load int8 activations from 21 on"


@rule("warning", "export again with opset {opset}")
def newer_opset(graph: Graph, want: Profile) -> Faults:
    """This combination of target and opset is untested."""
    if graph.opset > want.opset:
        yield "opset", f"is {graph.opset}; files for this target are made and checked with {want.opset}"


@rule("warning", "save the model with its data inside")
def external_data(graph: Graph, want: Profile) -> Faults:
    """One of the two files can get lost, and checksums and signatures of one do not cover the other."""
    for name in graph.external:
        yield name, "is stored in another file, which has to travel with this one"
