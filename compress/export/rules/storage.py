"""Rules about the file as a whole: types, opset, and where its data is stored."""

from __future__ import annotations

from compress.export.qdq import Graph
from compress.export.rules.registry import Faults, rule
from compress.targets import Profile


@rule("error", "export again with `--set target.name={target}`")
def float_type(graph: Graph, want: Profile) -> Faults:
    """A layer that is not quantized runs in the type that the file gives it."""
    unchecked = {"Cast", "Constant", "QuantizeLinear"}
    for node in graph.nodes:
        kind = graph.types.get(node.output[0], "")
        if kind.startswith(("float", "bfloat")) and kind != want.float_type and node.op_type not in unchecked:
            yield graph.label(node), f"has type {kind} ({node.op_type}) and runs so; the target wants {want.float_type}"


@rule("error", "put a Cast inside the file instead")
def interface_type(graph: Graph, want: Profile) -> Faults:
    """Callers pass float32 images and read float32 results, whatever the types inside."""
    given = {tensor.name for tensor in graph.model.graph.initializer}
    for value in [*graph.model.graph.input, *graph.model.graph.output]:
        kind = graph.types.get(value.name, "")
        if value.name not in given and kind != "float32":
            yield value.name, f"is an input or output of type {kind}; callers pass and read float32"


@rule("error", "export again with opset {opset}")
def opset(graph: Graph, want: Profile) -> Faults:
    """Scales per channel came with opset 13, float16 scales with 19, 16 and 4 bit integers with 21."""
    version = graph.opset
    halves = any(tensor.data_type == tensor.FLOAT16 for tensor in graph.model.graph.initializer)
    least = 19 if halves or want.float_type == "float16" else 13
    signed = any(graph.parameters(node).integers == "int8" for node in graph.activations())
    if version < least:
        yield "opset", f"is {version}; Q/DQ of this kind need {least} or later"
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
