"""Let TensorRT's own parser judge a file: it is the one that will read it on the device."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from compress.engines.tensorrt.edition import Edition
from compress.engines.tensorrt.network import name_of
from compress.engines.tensorrt.rtx import RTX
from compress.engines.tensorrt.standard import TENSORRT
from compress.engines.tensorrt.worker import CrashError, read_apart
from compress.errors import BackendAbsent
from compress.export.findings import Finding
from compress.export.qdq import Graph
from compress.export.rules.registry import REQUANTIZE
from compress.targets import profile

RULE = "tensorrt-parser"
_OTHERWISE = "write this part of the network with other operations; or export the file again, if it is damaged"


def ask_parser(
    path: Path, graph: Graph, target: str, float_layers: Collection[str], known: Collection[Finding]
) -> tuple[str, tuple[Finding, ...]]:
    """Read a file with TensorRT's parser.

    Args:
        graph: of the same file.
        target: the target's name.
        float_layers: layers that are meant to stay in float, which are not reported.
        known: findings of the rules; a node that has an error already is not reported again.

    Returns:
        the library that has read it, and what it finds.

    Raises:
        BackendAbsent: no parser runs on this machine.
        EngineError: it does not start, or does not end.
    """
    edition = _parser_here()
    try:
        parsed, _ = read_apart(edition, path)
    except CrashError as error:
        return edition.title, (Finding(RULE, "error", path.name, f"cannot be built: {error.message}", _OTHERWISE),)
    labels = {name_of(node): graph.label(node) for node in graph.nodes}
    told = {finding.node for finding in known if finding.severity == "error"}
    found = []
    for fault in parsed.refused:
        node = graph.label(graph.nodes[fault.index]) if 0 <= fault.index < len(graph.nodes) else path.name
        found.append((node, f"is refused: {fault.message}", _OTHERWISE))
    for fault in parsed.unintended(graph.model.graph, float_layers, profile(target).keep_float):
        if (node := labels.get(fault.node, fault.node)) not in told:
            found.append((node, fault.message, REQUANTIZE.format(target=target)))
    return parsed.library, tuple(Finding(RULE, "error", *one) for one in found)


def _parser_here() -> Edition:
    """The edition whose parser runs on this machine; the one that needs no GPU comes first."""
    try:
        RTX.require_builder("cuda")
    except BackendAbsent as absent:
        try:
            TENSORRT.require_builder("cuda")
        except BackendAbsent:
            raise absent from None
        return TENSORRT
    return RTX
