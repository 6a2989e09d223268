"""The checks of ``benchmarks.trust``: each measures one possible error of the timing harness."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from benchmarks.results.base import Bounds
from benchmarks.results.comparison import compare_runs
from benchmarks.results.latency import LatencyResult
from benchmarks.results.tables import interval
from benchmarks.selfcheck.repeated import open_repeated, write_order
from benchmarks.selfcheck.tools import rival
from benchmarks.statistics import intervals
from benchmarks.timing.machine import fastest_processors
from benchmarks.timing.reference import reference_networks
from benchmarks.timing.run import measure
from benchmarks.timing.worker import Settings, Turn, inner_calls, open_for, time_samples
from compress.progress import Progress

_REPEATS, _MORE = 20, 21  # inferences per call of the engine, and of the one that does 5% more work
_RUNS_A_SPACE = 10


@dataclass(frozen=True)
class Report:
    """The result of a check: a table, a sentence that sums it up, and the measurements behind it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    verdict: str
    results: tuple[LatencyResult, ...] = ()

    @property
    def doubts(self) -> list[str]:
        """The reasons of INVALID measurements."""
        return [reason for one in self.results for reason in one.verdict.reasons]


def overhead(engine: Path, settings: Settings, tries: int, progress: Progress) -> Report:
    """Compare the harness's loop with a bare loop around the same session; the two take turns.

    The engine is a network with a single Identity node and the input shape of ``engine``, so only the calls take time.
    """
    with open_for(engine, settings) as opened:
        shape = [settings.batch, *(dim or 1 for dim in opened.inputs[0].shape[1:])]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "identity.onnx"
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "output")]
        node = helper.make_node("Identity", ["input"], ["output"])
        graph = helper.make_graph([node], "identity", ends[:1], ends[1:])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        bare = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feeds = {"input": np.zeros(shape, np.float32)}
        pool = itertools.cycle([feeds])
        with open_for(path, settings) as ours:
            runs: list[Callable[[], object]] = [lambda: bare.run(None, feeds), lambda: ours.run(next(pool))]
            inner = inner_calls(_per_call(runs[0]))
            rounds: list[list[list[int]]] = [[], []]
            for _ in progress.track(range(tries), "overhead"):
                for run, samples in zip(runs, rounds, strict=True):
                    samples.append(time_samples(run, time.perf_counter_ns, turn=Turn(0.05), inner=inner))
    us = [[np.asarray(samples) / 1e3 for samples in one] for one in rounds]
    added = [float(np.median(ours) - np.median(bare)) for bare, ours in zip(*us, strict=True)]
    found = Bounds.of(intervals.median_interval([np.array([each]) for each in added]))
    names = ("bare", "harness")
    rows = [[name, interval(Bounds.of(intervals.median_interval(one)))] for name, one in zip(names, us, strict=True)]
    return Report(
        f"microseconds per inference of a network that does nothing, {'x'.join(map(str, shape))}",
        ["loop", "median us"],
        rows,
        f"the harness adds {interval(found)} microseconds per inference",
    )


def same(engine: Path, settings: Settings, tries: int, progress: Progress) -> Report:
    """Compare an engine with itself in one run; an interval of the ratio that excludes 1 is a false difference."""
    pairs = [measure([engine, engine], replace(settings, seed=i), progress=progress) for i in range(tries)]
    none = sum(ratio.lo <= 1 <= ratio.hi for ratio in map(_ratio, pairs))
    return _ratios("an engine against itself, one interleaved run each", pairs, f"no difference in {none} of {tries}")


def slower(engine: Path, settings: Settings, tries: int, progress: Progress) -> Report:
    """Compare an engine that does 20 inferences per call with one that does 21."""
    with tempfile.TemporaryDirectory() as folder:
        files = [write_order(Path(folder) / f"{times}.json", engine, times) for times in (_REPEATS, _MORE)]
        pairs = [
            measure(files, replace(settings, seed=i), opener=open_repeated, progress=progress) for i in range(tries)
        ]
    seen = sum(_ratio(pair).lo > 1 for pair in pairs)
    return _ratios("5% more of the same work", pairs, f"found slower in {seen} of {tries}")


def apart(engine: Path, settings: Settings, tries: int, progress: Progress, *, minutes: float) -> Report:
    """Measure at regular intervals, and compare each run with the one that began ``minutes`` later."""
    runs: list[LatencyResult] = []
    begin = time.monotonic()
    with reference_networks() as known:
        for index in range(tries + _RUNS_A_SPACE):
            time.sleep(max(0.0, begin + index * 60 * minutes / _RUNS_A_SPACE - time.monotonic()))
            runs += measure([engine], replace(settings, seed=index), references=known, progress=progress)
    rows, overlapping, different, warned = [], 0, 0, 0
    for before, after in zip(runs, runs[_RUNS_A_SPACE:], strict=False):
        a, b = (one.stats["latency_ms"].median for one in (before, after))
        (compared,) = compare_runs([before], [after]).engines
        ratio = compared.ratio
        overlapping += a.lo <= b.hi and b.lo <= a.hi
        seen = not ratio.lo <= 1 <= ratio.hi
        different += seen
        warned += seen and compared.pace is not None and not compared.pace.lo <= 1 <= compared.pace.hi
        pace = interval(compared.pace, 3) if compared.pace else ""
        rows.append([interval(a, 4), interval(b, 4), pace, interval(ratio, 3)])
    return Report(
        f"two runs {minutes:g} minutes apart",
        ["median ms", "later", "machine", "ratio"],
        rows,
        f"medians' intervals overlap in {overlapping} of {tries}; benchmarks.compare sees a difference in {different}, "
        f"and warns of the machine's pace in {warned} of these",
        tuple(runs),
    )


def tools(engine: Path, settings: Settings, tries: int, progress: Progress) -> Report:
    """Compare the runtime's own tool with this harness, in turns; with one thread, each pair on the next processor."""
    other = rival(engine, settings)
    processors = fastest_processors()
    ours, theirs, results = [], [], []
    for index in progress.track(range(tries), other.name):
        turn = (processors[index % len(processors)],) if processors and settings.threads == 1 else None
        bound = replace(settings, seed=index, affinity=turn)
        results.append(measure([engine], bound)[0])
        found = results[-1].stats["latency_ms"]
        ours.append(found.mean if other.statistic == "mean" else found.median.value)
        theirs.append(other.run(found.median.value, bound.affinity))
    ratio = Bounds.of(intervals.ratio_interval([np.array([ms]) for ms in ours], [np.array([ms]) for ms in theirs]))
    rows = [[f"{b:.4f}", f"{a:.4f}", f"{a / b:.3f}"] for a, b in zip(ours, theirs, strict=True)]
    return Report(
        f"{other.name} and benchmarks.latency on {engine.name}: {other.statistic} ms",
        ["tool", "harness", "ratio"],
        rows,
        f"harness over tool: {interval(ratio, 3)}, geometric mean of {tries}; ratio of their medians "
        f"{np.median(ours) / np.median(theirs):.3f}",
        tuple(results),
    )


def _ratio(pair: Sequence[LatencyResult]) -> Bounds:
    comparison = pair[1].comparison
    assert comparison is not None
    return comparison.ratio


def _ratios(title: str, pairs: Sequence[Sequence[LatencyResult]], verdict: str) -> Report:
    rows = [[str(i), interval(_ratio(pair), 3)] for i, pair in enumerate(pairs)]
    return Report(title, ["try", "ratio"], rows, verdict, tuple(one for pair in pairs for one in pair))


def _per_call(run: Callable[[], object]) -> float:
    return float(np.median(time_samples(run, time.perf_counter_ns, turn=Turn(0.05), inner=1)))


CHECKS: dict[str, Callable[..., Report]] = {check.__name__: check for check in (overhead, same, slower, apart, tools)}
