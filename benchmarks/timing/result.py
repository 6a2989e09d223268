"""Turn the measurements of an engine into a result: statistics, warnings, and a verdict whether the figures count."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from benchmarks.results.artifact import artifact
from benchmarks.results.base import BackendInfo, Bounds, Verdict
from benchmarks.results.latency import Comparison, Contention, LatencyResult, Monitor, Pace, Scenario, Summary, Work
from benchmarks.statistics import intervals
from benchmarks.timing.machine import concerns, host, shared, throttled, tool
from benchmarks.timing.reference import ENGINE, gmacs
from benchmarks.timing.timed_engine import TimedEngine
from benchmarks.timing.worker import FEWEST, Settings, pool_for
from compress.export.overflow import overflow_warnings
from compress.files import file_sha256
from compress.targets import profile

# Spread of the rounds' medians (90th over 10th percentile) above which a series gets a warning, or is INVALID.
_DOUBTFUL, _UNUSABLE = 1.1, 1.5
_DISAGREE = 1.05  # medians of an engine's processes, 90% quantile over 10%
_STARVED = 0.1
_PERCENTILES = (90.0, 95.0, 99.0)


def summarize(
    rounds: intervals.Rounds, processes: int = 1, *, percentiles: Iterable[float] = (), seed: int = 0
) -> Summary:
    """Statistics of a metric measured in rounds (at least two).

    Args:
        rounds, processes: as ``intervals.blocks`` takes them.
        percentiles: besides 90, 95 and 99.
    """
    samples = np.concatenate(rounds)
    mean, stdev = float(samples.mean()), float(samples.std(ddof=1))
    asked = sorted({*_PERCENTILES, *percentiles})
    blocks = intervals.blocks(rounds, processes)
    tails = {f"p{percent:g}": intervals.quantile_interval(blocks, percent / 100, seed=seed) for percent in asked}
    return Summary(
        n=len(samples),
        min=float(samples.min()),
        mean=mean,
        median=Bounds.of(intervals.median_interval(blocks, seed=seed)),
        stdev=stdev,
        cv=stdev / mean,
        mad=intervals.mad(samples),
        percentiles={name: None if found is None else Bounds.of(found) for name, found in tails.items()},
    )


def result_of(
    one: TimedEngine,
    series: Sequence[TimedEngine],
    failed: Mapping[str, str],
    monitor: Monitor,
    peaks: Mapping[str, float],
    pace: Pace | None,
    argv: Sequence[str],
) -> LatencyResult:
    """The result of one engine.

    Args:
        series: all engines of the run; the others are compared with the first.
        failed: why other engines failed, by file.
        peaks: GMAC/s that the machine reaches, by precision.
        pace: the pace of the machine while the engines were timed.
    """
    settings, opened = one.settings, one.opened[0]
    summary = summarize(one.rounds_ms, len(one.lives), percentiles=settings.percentile, seed=settings.seed)
    throughput = Bounds.of(intervals.median_interval(one.throughput, seed=settings.seed))
    flagged = int(intervals.outliers(np.concatenate(one.rounds_ms)).sum())
    contention = Contention(waited=one.watched.share_waited, others=one.watched.processors_of_others)
    return LatencyResult(
        run_id=uuid.uuid4().hex,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        tool=tool(),
        argv=list(argv),
        config=_plain(settings),
        artifact=artifact(one.path),
        backend=BackendInfo(
            name=opened.name, version=opened.version, requested=opened.requested, actual=opened.provider
        ),
        host=host(opened.name),
        device=settings.device or "default",
        scenario=Scenario(
            name="single-stream" if settings.streams == 1 else "offline",
            batch=settings.batch,
            shape=list(opened.shape),
            inputs="random normal" if pool_for(opened.shape, settings.images) is None else "images",
            pool=opened.pool,
            inner=one.inner,
            streams=settings.streams,
            processes=len(one.lives),
            rounds=len(one.turns),
            processors=[life.processors for life in one.lives],
            interleaved_with=[str(other.path) for other in series if other is not one],
            failed=dict(failed),
        ),
        modes={"threads": settings.threads, **opened.modes},
        stats={"latency_ms": summary},
        load_ms=one.load_ms,
        first_inference_ms=one.first_ms,
        peak_memory_bytes=max(life.peak for life in one.lives),
        throughput=throughput,
        outliers=flagged,
        samples_ns=[turn.samples for turn in one.turns],
        monitor=monitor,
        contention=contention,
        pace=None if settings.on_gpu(one.path) or settings.streams > 1 else pace,
        work=_work(one, summary.median.value, throughput.value, peaks),
        warnings=[
            *concerns(monitor, settings.threads * settings.streams, settings.affinity),
            *shared(contention),
            *elsewhere(opened.target, opened.name),
            *overflow_warnings(one.path, opened.name),
            *_warnings(one, summary, flagged),
        ],
        verdict=_verdict(one, contention, monitor),
        comparison=None if one is series[0] else _comparison(one, series[0]),
    )


def unfinished(result: LatencyResult, processes: int) -> LatencyResult:
    """Mark a result of the first few of ``processes`` as INVALID, because the measurement has not ended."""
    reason = f"the measurement did not finish: {result.scenario.processes} of {processes} processes"
    verdict = Verdict(status="INVALID", reasons=[reason, *result.verdict.reasons])
    return result.model_copy(update={"verdict": verdict})


def pace_of(reference: TimedEngine) -> Pace:
    """The pace of the machine, from a reference network that was timed in every round."""
    return Pace(
        sha256=file_sha256(reference.path),
        version=reference.opened[0].version,
        rounds_ms=[float(np.median(samples)) for samples in reference.rounds_ms],
    )


def _work(one: TimedEngine, median_ms: float, images_per_s: float, peaks: Mapping[str, float]) -> Work | None:
    opened, alone = one.opened[0], one.settings.streams == 1  # the reference networks run in one stream too
    if opened.macs is None or opened.precision is None:
        return None
    return Work(
        macs=opened.macs,
        precision=opened.precision,
        gmacs_per_s=gmacs(opened.macs, one.settings.batch, median_ms) if alone else opened.macs * images_per_s / 1e9,
        peak_gmacs_per_s=peaks.get(opened.precision) if alone and opened.name == ENGINE else None,
    )


def _comparison(one: TimedEngine, baseline: TimedEngine) -> Comparison:
    ratio = intervals.ratio_interval(one.rounds_ms, baseline.rounds_ms, len(one.lives))
    return Comparison(baseline=str(baseline.path), ratio=Bounds.of(ratio))


def _verdict(one: TimedEngine, contention: Contention, monitor: Monitor) -> Verdict:
    reasons = []
    if not all(opened.finite for opened in one.opened):
        reasons.append("the outputs hold NaN or infinity")
    if (spread := _spread(one)) > _UNUSABLE:
        reasons.append(f"the rounds' medians differ by a factor of {spread:.2f}: other work disturbed the machine")
    if contention.waited is not None and contention.waited > _STARVED:
        reasons.append(f"it was ready to run but had to wait for a processor {contention.waited:.0%} of the time")
    reasons += throttled(monitor, on_gpu=one.settings.on_gpu(one.path))
    return Verdict(status="INVALID" if reasons else "VALID", reasons=reasons)


def _warnings(one: TimedEngine, summary: Summary, flagged: int) -> list[str]:
    found = []
    if not all(warmed.steady for life in one.lives for warmed in life.warmed):
        found.append("the latency was not yet steady after the warm-up")
    if _DOUBTFUL < (spread := _spread(one)) <= _UNUSABLE:
        found.append(f"unstable: the rounds' medians differ by a factor of {spread:.2f}")
    medians = [float(np.median(block)) for block in one.blocks_ms]
    low, high = np.quantile(medians, [0.1, 0.9])
    if len(one.lives) > 1 and high > _DISAGREE * low:
        found.append(f"the worker processes disagree: {min(medians):.3f} to {max(medians):.3f} ms")
    if 1 < len(one.lives) < FEWEST:
        found.append(f"{len(one.lives)} worker processes are too few for 95% intervals; measure with {FEWEST} or more")
    if one.settings.precision and one.median.precision > one.settings.precision:
        found.append(f"the median is known to within {one.median.precision:.2%} only; measure with more --processes")
    if one.settings.percentile and one.inner > 1:
        found.append(f"each sample is the mean of {one.inner} inferences, to last 1 ms: percentiles are of these means")
    if flagged:
        found.append(f"{flagged} of {summary.n} samples are outliers (kept)")
    for percent in sorted({_PERCENTILES[0], *one.settings.percentile}):
        if summary.percentiles[f"p{percent:g}"] is None:
            needed = intervals.samples_needed(percent / 100)
            found.append(f"{summary.n} samples are too few for p{percent:g} ({needed} needed)")
    return found


def elsewhere(target: str, engine: str) -> Iterator[str]:
    """Warn if a file was measured in another engine or on another machine than its ``target`` names."""
    if not target:
        return
    made_for, machine = profile(target), platform.machine()
    if engine not in made_for.engines:
        yield f"made for {made_for.engines[0]}, measured in {engine}: its latency here is not that of the target"
    elif made_for.machines and machine not in made_for.machines:
        yield f"made for {made_for.machines[0]}, measured on {machine}: its latency here is not that of the target"


def _spread(one: TimedEngine) -> float:
    low, high = np.quantile([np.median(samples) for samples in one.rounds_ms], [0.1, 0.9])
    return float(high / low)


def _plain(settings: Settings) -> dict[str, Any]:
    """The settings as plain JSON values."""
    values = {name: value for name, value in asdict(settings).items() if name != "images"}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
