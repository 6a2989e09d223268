"""Run an engine with every node timed by its runtime, which slows the run."""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks.timing.machine import bound_to
from benchmarks.timing.worker import Settings, input_pool
from compress.engines.base import Engine, OpenOptions
from compress.errors import EngineError

_WARMUP, _RUNS = 20, 100
_KERNEL_TIME = "_kernel_time"


class Timed(NamedTuple):
    """The time of a node in microseconds: of one run, or the median or mean of several."""

    name: str
    op: str
    us: float


@dataclass(frozen=True)
class Profiled:
    """The node times that a runtime reports.

    Attributes:
        nodes: in the runtime's order.
        statistic: the statistic of each node's time over the runs.
        nodes_ms: the same statistic of the sum over the nodes of a run.
        run_ms: the time of each run, measured from outside.
    """

    nodes: Sequence[Timed]
    statistic: Literal["median", "mean"]
    nodes_ms: float
    run_ms: Sequence[float]


def time_nodes(path: Path, settings: Settings) -> Profiled:
    """Open an .onnx or .xml file in this process, warm it up, and run it with every node timed.

    Raises:
        EngineError: the engine cannot be opened or run.
        BackendAbsent: its runtime is not installed.
    """
    with bound_to(settings.affinity):
        return (_onnxruntime if path.suffix == ".onnx" else _openvino)(path, settings)


def medians(runs: Sequence[Sequence[Timed]]) -> list[Timed]:
    """The median of each node over the runs.

    Raises:
        EngineError: the runs have different nodes.

    >>> medians([[Timed("conv", "Conv", 9)], [Timed("conv", "Conv", 4)], [Timed("conv", "Conv", 5)]])
    [Timed(name='conv', op='Conv', us=5)]
    """
    if not runs or any([node[:2] for node in run] != [node[:2] for node in runs[0]] for run in runs):
        raise EngineError("the runtime's profile has different nodes in different runs")
    return [same[0]._replace(us=statistics.median(node.us for node in same)) for same in zip(*runs, strict=True)]


def _onnxruntime(path: Path, settings: Settings) -> Profiled:
    from compress.engines.onnxruntime import OnnxRuntimeEngine

    with (
        tempfile.TemporaryDirectory() as folder,
        OnnxRuntimeEngine(path, _options(settings), profile=Path(folder) / "profile") as engine,
    ):
        run_ms = _run(engine, settings, lambda: None)
        events = json.loads(engine.end_profiling().read_bytes())
    runs = list(runs_of(events))[_WARMUP:]
    return Profiled(
        medians(runs), "median", statistics.median(sum(node.us for node in run) for run in runs) / 1e3, run_ms
    )


def runs_of(events: Sequence[Mapping[str, Any]]) -> Iterator[list[Timed]]:
    """The nodes of each run in a profile of ONNX Runtime: trace events with ``ts`` and ``dur`` in microseconds."""
    ordered = sorted(events, key=lambda event: event["ts"])
    nodes = [event for event in ordered if event["cat"] == "Node" and event["name"].endswith(_KERNEL_TIME)]
    position = 0
    for run in (event for event in ordered if event["name"] == "model_run"):
        start = position
        while position < len(nodes) and nodes[position]["ts"] <= run["ts"] + run["dur"]:
            position += 1
        yield [
            Timed(node["name"].removesuffix(_KERNEL_TIME), node["args"]["op_name"], node["dur"])
            for node in nodes[start:position]
        ]


def _openvino(path: Path, settings: Settings) -> Profiled:
    from compress.engines.openvino import OpenVinoEngine

    readings: list[list[Timed]] = []
    with OpenVinoEngine(path, _options(settings), profile=True) as engine:
        run_ms = _run(
            engine,
            settings,
            lambda: readings.append(
                [
                    Timed(node.node_name, node.node_type, node.real_time.total_seconds() * 1e6)
                    for node in engine.profiling_info()
                ]
            ),
        )
    nodes = mean_since(readings[_WARMUP - 1], _WARMUP, readings[-1], len(readings))
    return Profiled(nodes, "mean", sum(node.us for node in nodes) / 1e3, run_ms)


def mean_since(before: Sequence[Timed], runs_before: int, after: Sequence[Timed], runs: int) -> list[Timed]:
    """Undo OpenVINO's averaging: its times are means over all runs since the network was compiled.

    The times are whole microseconds, so the result is coarse. Nodes with a time of 0 are left out: they are fused into
    others, constant, or shorter than a microsecond.

    >>> mean_since([Timed("conv", "Convolution", 90)], 20, [Timed("conv", "Convolution", 40)], 120)
    [Timed(name='conv', op='Convolution', us=30.0)]
    """
    means = [
        now._replace(us=max(0.0, (runs * now.us - runs_before * then.us) / (runs - runs_before)))
        for then, now in zip(before, after, strict=True)
    ]
    return [node for node in means if node.us > 0]


def _options(settings: Settings) -> OpenOptions:
    return OpenOptions(settings.threads, trust=settings.trust)


def _run(engine: Engine, settings: Settings, after_each: Callable[[], None]) -> list[float]:
    """Warm up, then run; return the milliseconds of each run."""
    pool = input_pool(engine.inputs, settings)
    run_ms = []
    for feeds in itertools.islice(itertools.cycle(pool), _WARMUP + _RUNS):
        start = time.perf_counter_ns()
        engine.run(feeds)
        run_ms.append((time.perf_counter_ns() - start) / 1e6)
        after_each()
    return run_ms[_WARMUP:]
