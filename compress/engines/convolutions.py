"""Check after an INT8 build that exactly the convolutions that are meant to run in float do so.

A convolution that falls back to float silently loses speed; a convolution that was meant to stay in float and runs in
integers loses the accuracy that it was left in float for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx

from compress.engines.metadata import Metadata
from compress.errors import EngineError

Names = Sequence[str]
"""The names that a convolution of an engine may have in the exported graph, by node or output; the engine's first."""


def check_convolutions(
    path: Path, metadata: Metadata, floats: Sequence[Names], why: Callable[[onnx.NodeProto, onnx.GraphProto], str]
) -> None:
    """Compare the convolutions that an engine runs in float with those that the exported file means to.

    Args:
        path: the exported INT8 file, whose ``metadata.float_layers`` are meant to run in float.
        floats: the names of each convolution that the engine runs in float.
        why: explains what around a node of the exported graph keeps the engine from computing it in integers.

    Raises:
        EngineError: a convolution runs in float that should not, or one does not that should; the first is named.
    """
    graph = onnx.load(path, load_external_data=False).graph
    wrong = _unintended(graph, floats, metadata.float_layers)
    if wrong:
        name, conv = wrong[0]
        name, reason = (name, "it is not in the exported graph") if conv is None else (conv.name, why(conv, graph))
        raise EngineError(
            f"{path.name} should run in INT8, but {len(wrong)} convolution(s) run in float, first '{name}': {reason}",
            remedy=f"run `python -m compress lint {path} --target {metadata.target}` for details; "
            f"quantize and export again with `--set target.name={metadata.target}`",
        )
    meant = _meant(graph, metadata.float_layers)
    lost = [conv.name for conv in meant if not any(_is_one_of(conv, names) for names in floats)]
    if lost:
        raise EngineError(
            f"{path.name} should run {len(meant)} convolution(s) in float, but {len(lost)} of them run in integers, "
            f"first '{lost[0]}': it lies between two quantizers, and the engine has quantized its weight by itself",
            remedy=f"export again with `python -m compress export --set target.name={metadata.target}`",
        )


def _unintended(
    graph: onnx.GraphProto, floats: Sequence[Names], float_layers: Sequence[str]
) -> list[tuple[str, onnx.NodeProto | None]]:
    """Those of ``floats`` that are not among ``float_layers``.

    Returns:
        the engine's name, and the node of the exported ``graph`` that it came from if that is known.
    """
    meant = _meant(graph, float_layers)
    origins = [(names[0], next((conv for conv in _all(graph) if _is_one_of(conv, names)), None)) for names in floats]
    return [(name, conv) for name, conv in origins if conv not in meant]


def unquantized(conv: onnx.NodeProto, graph: onnx.GraphProto) -> str | None:
    """Describe which of a convolution's inputs is not quantized; None if both are."""
    producers = {output: node.op_type for node in graph.node for output in node.output}
    for role, tensor in zip(("input", "weight"), conv.input, strict=False):
        if producers.get(tensor) != "DequantizeLinear":
            return f"its {role} is not quantized (no DequantizeLinear before it)"
    return None


def _all(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == "Conv"]


def _meant(graph: onnx.GraphProto, float_layers: Sequence[str]) -> list[onnx.NodeProto]:
    prefixes = tuple(f"{layer}." for layer in float_layers)
    return [conv for conv in _all(graph) if conv.input[1].startswith(prefixes)]


def _is_one_of(conv: onnx.NodeProto, names: Names) -> bool:
    return any(name in names for name in (conv.name, *conv.output) if name)
