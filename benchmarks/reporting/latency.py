"""Write latencies as a table, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.reporting.comparison import judgement
from benchmarks.results.latency import LatencyResult
from benchmarks.results.tables import interval, literal, markdown, rate, speedup

HEADER = [
    "engine",
    "median ms",
    "p90 ms",
    "speed-up",
    "images/s",
    "load ms",
    "first ms",
    "file MB",
    "peak MB",
    "GMAC/s",
    "of peak",
]


def rows(results: Sequence[LatencyResult]) -> list[list[str]]:
    """Results as the cells of a table, one row per engine."""
    several = len(_shapes(results)) > 1
    return [_row(result, f" ({_dims(result)})" if several else "") for result in results]


def _dims(result: LatencyResult) -> str:
    return "x".join(str(dim) for dim in result.scenario.shape)


def _shapes(results: Sequence[LatencyResult]) -> list[str]:
    """The shapes of the inputs, each once."""
    return list(dict.fromkeys(map(_dims, results)))


def _row(result: LatencyResult, note: str) -> list[str]:
    stats, work = result.stats["latency_ms"], result.work
    p90 = stats.percentiles["p90"]
    peak = work and work.peak_gmacs_per_s
    return [
        f"{Path(result.artifact.path).name}{note}",
        interval(stats.median),
        interval(p90) if p90 else "too few",
        speedup(result.comparison.ratio if result.comparison else None),
        rate(result.throughput),
        f"{result.load_ms:.0f}",
        f"{result.first_inference_ms:.1f}",
        f"{result.artifact.bytes / 1e6:.1f}",
        f"{result.peak_memory_bytes / 1e6:.0f}",
        f"{work.gmacs_per_s:.1f}" if work else "",
        f"{work.gmacs_per_s / peak:.0%}" if work and peak else "",
    ]


def to_csv(results: Sequence[LatencyResult]) -> str:
    """Results as CSV, one line per engine; a value that was not measured is an empty cell."""
    lines = [_record(result) for result in results]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _record(result: LatencyResult) -> dict[str, object]:
    stats = result.stats["latency_ms"]
    intervals = {
        "median_ms": stats.median,
        **{f"{name}_ms": bounds for name, bounds in stats.percentiles.items()},
        "ratio": result.comparison and result.comparison.ratio,
        "throughput": result.throughput,
    }
    return {
        "engine": result.artifact.path,
        "sha256": result.artifact.sha256,
        "date": result.date,
        "backend": result.backend.name,
        "version": result.backend.version,
        "provider": result.backend.actual,
        "input": _dims(result),
        "threads": result.modes["threads"],
        "batch": result.scenario.batch,
        "streams": result.scenario.streams,
        **{
            f"{name}{suffix}": bounds and getattr(bounds, field)
            for name, bounds in intervals.items()
            for suffix, field in (("", "value"), ("_lo", "lo"), ("_hi", "hi"))
        },
        "samples": stats.n,
        "first_inference_ms": result.first_inference_ms,
        "load_ms": result.load_ms,
        "bytes": result.artifact.bytes,
        "peak_memory_bytes": result.peak_memory_bytes,
        "gmacs_per_s": result.work and result.work.gmacs_per_s,
        "peak_gmacs_per_s": result.work and result.work.peak_gmacs_per_s,
        "verdict": result.verdict.status,
    }


def remarks(results: Sequence[LatencyResult]) -> list[str]:
    """The reasons of INVALID measurements, the warnings, and the decisions of the run's gates, one line each."""
    doubts = [
        f"{kind}: {Path(result.artifact.path).name}: {text}"
        for result in results
        for kind, texts in (("INVALID", result.verdict.reasons), ("warning", result.warnings))
        for text in texts
    ]
    return [*doubts, *_gates(results)]


def _gates(results: Sequence[LatencyResult]) -> Iterator[str]:
    first, *others = results
    for one in others:
        name = f"{Path(one.artifact.path).name} over {Path(first.artifact.path).name}"
        for gate in one.comparison.gates if one.comparison else ():
            if "INVALID" in (one.verdict.status, first.verdict.status):
                yield f"{name}: {gate.metric} is not decided, since a measurement is INVALID"
            else:
                yield judgement(name, gate)


def to_markdown(results: Sequence[LatencyResult]) -> str:
    """The table and the remarks."""
    bullets = "".join(f"- {literal(remark)}\n" for remark in remarks(results))
    return f"{title(results)}\n\n{markdown(HEADER, rows(results))}\n\n{bullets}"


def title(results: Sequence[LatencyResult]) -> str:
    """The conditions of the measurement, in one line."""
    first, shapes = results[0], _shapes(results)
    shape = shapes[0] if len(shapes) == 1 else f"{len(shapes)} input sizes"
    streams = f"{first.scenario.streams} streams of " if first.scenario.streams > 1 else ""
    return f"latency, {shape}, {streams}{first.modes['threads']} thread(s), {first.host.cpu}, 95% intervals"
