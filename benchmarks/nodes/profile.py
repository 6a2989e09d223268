"""Profile an inference: the time of each node of the runtime's graph, and of each layer of the model.

``python -m benchmarks.latency --engine FILE --export-profile OUT.json`` writes it. Timing every node slows a run, so
the profile is a run of its own after the measurement; both times are reported.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from benchmarks.nodes.origins import Origins, exported_file
from benchmarks.nodes.timing import Timed, time_nodes
from benchmarks.results.base import Bounds, Common
from benchmarks.results.latency import LatencyResult
from benchmarks.results.nodes import LayerRecord, NodeProfile, NodeRecord
from benchmarks.results.tables import emit, require_writable, show
from benchmarks.timing.worker import Settings
from compress.console import Console
from compress.engines.base import engine_of
from compress.errors import ConfigError, EngineError
from compress.export.qdq import module_of

_TOP = 15
_TIMER_COST = 1.1  # warn if the sum over the nodes is larger than the latency without profiling by this factor
_DISTURBED = 0.8
_SUFFIXES = (".onnx", ".xml")
_TOOLS = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}  # the engines' own programs, which time layers


def mapped(nodes: Sequence[Timed], origins: Origins) -> list[NodeRecord]:
    """Nodes with their share of the time, and the node of the file and layer of the model that they come from."""
    total = sum(node.us for node in nodes)
    records = []
    for node in nodes:
        origin = origins.find(node.name, node.op)
        records.append(
            NodeRecord(
                name=node.name,
                op=node.op,
                node=None if origin is None else origin.name or origin.output[0],
                layer=None if origin is None else module_of(origin),
                us=node.us,
                share=node.us / total if total else 0.0,
            )
        )
    return records


def by_layer(nodes: Sequence[NodeRecord]) -> list[LayerRecord]:
    """The nodes summed by layer, longest first; empty if no node has a layer."""
    groups: dict[str | None, list[NodeRecord]] = {}
    for node in nodes:
        groups.setdefault(node.layer, []).append(node)
    if set(groups) <= {None}:
        return []
    layers = [
        LayerRecord(
            layer=layer,
            nodes=len(group),
            us=sum(node.us for node in group),
            share=sum(node.share for node in group),
        )
        for layer, group in groups.items()
    ]
    return sorted(layers, key=lambda layer: -layer.us)


def check(engines: Sequence[Path], settings: Settings, target: str) -> None:
    """Check before the measurement that the engine can be profiled and the profile can be written.

    Raises:
        ConfigError: there are several engines or streams, or ``target`` cannot be written.
        EngineError: the nodes of such an engine cannot be timed.
    """
    if len(engines) != 1:
        raise ConfigError(f"--export-profile is for one engine, not {len(engines)}", remedy="profile them one by one")
    if settings.streams > 1:
        raise ConfigError("--export-profile is for one stream", remedy="leave out --streams")
    suffix, engine = engines[0].suffix, engine_of(engines[0])
    if engine in _TOOLS:
        raise EngineError(
            "--export-profile cannot time the layers of a TensorRT plan",
            remedy=f"use `{_TOOLS[engine]} --loadEngine=FILE --dumpProfile --separateProfileRun`",
        )
    if suffix not in _SUFFIXES:
        raise EngineError(f"the nodes of a '{suffix}' engine cannot be timed", remedy=f"known: {', '.join(_SUFFIXES)}")
    if settings.device == "cuda":
        raise EngineError(
            "on a GPU, ONNX Runtime's profile has the time at which a node was launched, not how long it ran",
            remedy="profile on the CPU, or with Nsight Systems",
        )
    require_writable(target)


def profile_nodes(path: Path, settings: Settings, measured: LatencyResult) -> NodeProfile:
    """Run an engine again, in this process, with every node timed.

    Args:
        path: an engine that passed ``check``.
        settings: the settings of ``measured``.

    Raises:
        EngineError: the engine cannot be opened or run.
    """
    profiled = time_nodes(path, settings)
    exported = exported_file(path)
    graph = onnx.GraphProto() if exported is None else onnx.load(exported, load_external_data=False).graph
    nodes = mapped(profiled.nodes, Origins.of(graph))
    layers = by_layer(nodes)
    latency = measured.stats["latency_ms"].median
    common = {name: getattr(measured, name) for name in Common.model_fields if name != "warnings"}
    return NodeProfile(
        **common,
        warnings=[*measured.warnings, *_unmapped(path, exported, layers), *_doubts(nodes, profiled.nodes_ms, latency)],
        runs=len(profiled.run_ms),
        statistic=profiled.statistic,
        latency_ms=latency,
        profiled_ms=statistics.median(profiled.run_ms),
        nodes_ms=profiled.nodes_ms,
        nodes=nodes,
        layers=layers,
    )


def export(path: Path, settings: Settings, measured: LatencyResult, target: str, console: Console) -> None:
    """Profile, write the JSON to ``target`` (``-`` is standard output), and print the tables."""
    profile = profile_nodes(path, settings, measured)
    emit(profile.model_dump_json(indent=2) + "\n", target)
    title = f"{path.name}: time per node, {profile.statistic} of {profile.runs} profiled runs"
    console.print()
    show(console, title, ["node", "operator", "layer", "us", "share"], node_rows(profile.nodes))
    if profile.layers:
        console.print()
        show(console, "time per layer of the model", ["layer", "nodes", "us", "share"], layer_rows(profile.layers))
    console.print()
    for line in (summary(profile), *(f"warning: {text}" for text in profile.warnings[len(measured.warnings) :])):
        console.print(line, soft_wrap=True)


def node_rows(nodes: Sequence[NodeRecord]) -> list[list[str]]:
    """The cells of a table, longest first; all but the first are summed."""
    ranked = sorted(nodes, key=lambda node: -node.us)
    rows = [[node.node or node.name, node.op, _label(node.layer), *_cells([node])] for node in ranked[:_TOP]]
    rest = ranked[_TOP:]
    return [*rows, [f"{len(rest)} more", "", "", *_cells(rest)]] if rest else rows


def layer_rows(layers: Sequence[LayerRecord]) -> list[list[str]]:
    rows = [[_label(layer.layer), str(layer.nodes), *_cells([layer])] for layer in layers[:_TOP]]
    rest = layers[_TOP:]
    more = [f"{len(rest)} more", str(sum(layer.nodes for layer in rest)), *_cells(rest)]
    return [*rows, more] if rest else rows


def summary(profile: NodeProfile) -> str:
    """Compare the sum over the nodes with the latency without profiling, in words."""
    latency = profile.latency_ms.value
    return (
        f"the nodes of a run take {profile.nodes_ms:.3f} ms together, {profile.nodes_ms / latency:.0%} of the "
        f"{latency:.3f} ms that were measured without profiling; with it a run took {profile.profiled_ms:.3f} ms "
        f"({profile.profiled_ms / latency - 1:+.0%})"
    )


def _label(layer: str | None) -> str:
    return "(none)" if layer is None else layer or "(the model itself)"


def _cells(parts: Sequence[NodeRecord | LayerRecord]) -> list[str]:
    return [f"{sum(part.us for part in parts):.0f}", f"{sum(part.share for part in parts):.1%}"]


def _unmapped(path: Path, exported: Path | None, layers: Sequence[LayerRecord]) -> Iterator[str]:
    if exported is None:
        yield f"the layers are not known: the exported ONNX file of {path.name} is neither beside it nor in ../export"
    elif not layers:
        yield f"the layers are not known: the nodes of {exported.name} have no names, or do not name their layer"


def _doubts(nodes: Sequence[NodeRecord], nodes_ms: float, latency: Bounds) -> Iterator[str]:
    """Warnings about profiles whose node times are distorted."""
    if nodes_ms > _TIMER_COST * latency.hi:
        cost = (nodes_ms - latency.value) * 1e3 / len(nodes)
        yield f"timing them seems to cost {cost:.1f} us a node: the share of short nodes is too high"
    if (added := sum(node.us for node in nodes) / 1e3) < _DISTURBED * nodes_ms:
        yield f"the medians add up to {added:.3f} ms, a run's nodes to {nodes_ms:.3f} ms: other work disturbed the runs"
