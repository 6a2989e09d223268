"""Whether a run is slower than an earlier one: pairing, conditions, pace, limits.

The two runs are not interleaved, so their processes are not paired (``stats.unpaired_ratio_interval``), and engines are
compared only where all else that a latency depends on is the same. A machine is not equally fast at all times: in both
runs a yardstick, the same network, had its turn in every round of the engines, and medians are compared as they would
be at one pace of it (``stats.at_one_pace``); percentiles as they are, since what makes them need not follow the pace.

A limit is decided by the interval of the ratio, not by its point. A slow-down is a regression where the whole 95%
interval lies beyond the limit: where the truth is the limit itself, noise within the runs fails a build in about one of
forty tries, and below the limit less often. Where the interval straddles the limit nothing is established: it passes,
and that is said. What the machine was doing comes with the result as warnings, and engines measured together in one run
of ``benchmarks.latency`` share it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import gmean

from benchmarks.results.schema import Bounds, EngineComparison, Gate, LatencyResult, Pace, RunComparison
from benchmarks.statistics import intervals
from benchmarks.timing.machine import concerns, shared, tool
from benchmarks.timing.worker import FEWEST
from compress.errors import ConfigError

REGRESSION, INVALID = 3, 4
_OF_THE_MACHINE = ("processor", "logical processors", "governor", "affinity", "threads")
_LIMIT = re.compile(r"(median|p\d\d(?:\.\d+)?):(\d+(?:\.\d+)?)%")

Couple = tuple[LatencyResult, LatencyResult]


@dataclass(frozen=True)
class Limit:
    """How much slower an engine may become: ``share`` of the baseline's ``metric``."""

    metric: str
    share: float

    @property
    def quantile(self) -> float:
        """
        >>> limit("p99.9:10%").quantile
        0.999
        """
        return 0.5 if self.metric == "median" else round(float(self.metric[1:]) / 100, 9)

    def __str__(self) -> str:
        return f"{self.metric}:{self.share * 100:g}%"


def limit(text: str) -> Limit:
    """Argument type: a metric and the slow-down that is allowed.

    >>> limit("median:5%")
    Limit(metric='median', share=0.05)
    """
    found = _LIMIT.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"'{text}' is not a limit such as median:5% or p90:10%")
    return Limit(found[1], float(found[2]) / 100)


def compare(
    baseline: Sequence[LatencyResult],
    candidate: Sequence[LatencyResult],
    limits: Sequence[Limit] = (),
    *,
    pairs: Sequence[tuple[str, str]] = (),
    allow_different: bool = False,
    argv: Sequence[str] = (),
) -> RunComparison:
    """Compare the engines of a run with those of an earlier run.

    Args:
        pairs: which engine of the baseline with which of the candidate, by file name or path; none: all that have the
            same file name, or the only one of each.
        allow_different: compare although the conditions differ; the result says which.

    Raises:
        ConfigError: nothing to pair, a name that is not there or not unique, different conditions, or too few samples
            for the percentile of a limit.
    """
    couples = pair(baseline, candidate, pairs)
    if not allow_different:
        _refuse_differences(couples)
    engines = [_compare(before, now, limits) for before, now in couples]
    paired = [id(result) for couple in couples for result in couple]
    return RunComparison(
        tool=tool(),
        argv=list(argv),
        engines=engines,
        unpaired=[one.artifact.path for one in (*baseline, *candidate) if id(one) not in paired],
        geomean=float(gmean([one.ratio.value for one in engines])),
        warnings=_machine(couples),
    )


def pair(
    baseline: Sequence[LatencyResult], candidate: Sequence[LatencyResult], chosen: Sequence[tuple[str, str]] = ()
) -> list[Couple]:
    """Who is compared with whom; see ``compare``."""
    if not chosen:
        if len(baseline) == len(candidate) == 1:
            return [(baseline[0], candidate[0])]
        common = {_name(one): None for one in baseline if _name(one) in map(_name, candidate)}
        chosen = [(name, name) for name in common]
    if not chosen:
        raise ConfigError(
            f"no engine is in both: {', '.join(map(_name, baseline))} against {', '.join(map(_name, candidate))}",
            remedy="choose two with --pair A B",
        )
    return [(_find(baseline, before, "baseline"), _find(candidate, now, "candidate")) for before, now in chosen]


def conditions(result: LatencyResult) -> dict[str, str]:
    """What a latency depends on besides the engine file: two results compare where all of it is the same."""
    host, scenario, backend = result.host, result.scenario, result.backend
    affinity = result.config.get("affinity")
    return {
        "processor": host.cpu,
        "logical processors": str(host.cores),
        "governor": result.monitor.before.governor or "not told",
        "affinity": ",".join(map(str, affinity)) if affinity else "none",
        "device": result.device,
        **({"GPUs": "; ".join(host.gpus)} if result.device == "cuda" or backend.name == "tensorrt" else {}),
        "engine": f"{backend.name} {backend.version}",
        "provider": backend.actual,
        "parallel streams": str(scenario.streams),
        "batch": str(scenario.batch),
        "input shape": "x".join(map(str, scenario.shape)),
        "inputs": scenario.inputs,
        **{name: str(value) for name, value in result.modes.items()},
    }


def exit_code(comparison: RunComparison) -> int:
    """0, 3 where a regression is established, 4 where a measurement is INVALID: that comes first, it proves nothing."""
    if any(one.invalid for one in comparison.engines):
        return INVALID
    decisions = [gate.decision for one in comparison.engines for gate in one.gates]
    return REGRESSION if "REGRESSION" in decisions else 0


def _name(result: LatencyResult) -> str:
    return Path(result.artifact.path).name


def _find(results: Sequence[LatencyResult], name: str, where: str) -> LatencyResult:
    found = [one for one in results if name in (one.artifact.path, _name(one))]
    if len(found) == 1:
        return found[0]
    paths = ", ".join(one.artifact.path for one in results)
    raise ConfigError(
        f"{len(found) or 'no'} engines of the {where} are called {name}: it has {paths}",
        remedy="choose two by their paths with --pair A B",
    )


def _refuse_differences(couples: Sequence[Couple]) -> None:
    found = {
        f"{what}: {a} against {b}": None
        for before, now in couples
        for what, (a, b) in _differences(before, now).items()
    }
    if found:
        raise ConfigError(
            f"measured under different conditions: {'; '.join(found)}",
            remedy="measure both alike, or compare them all the same with --allow-different",
        )


def _differences(baseline: LatencyResult, candidate: LatencyResult) -> dict[str, tuple[str, str]]:
    before, now = conditions(baseline), conditions(candidate)
    both = [(what, before.get(what, "none"), now.get(what, "none")) for what in {**before, **now}]
    return {what: (a, b) for what, a, b in both if a != b}


def _machine(couples: Sequence[Couple]) -> list[str]:
    found = {
        f"{which}: {text}": None
        for couple in couples
        for which, one in zip(("baseline", "candidate"), couple, strict=True)
        for text in _doubts(one)
    }
    return list(found)


def _doubts(one: LatencyResult) -> list[str]:
    """What a difference between two runs of the same engine may come from."""
    config = one.config
    threads = config.get("threads", 1) * one.scenario.streams
    found = concerns(one.monitor.before, one.monitor.after, threads, config.get("affinity"))
    found += shared(one.contention)
    if one.scenario.processes == 1:
        found.append("one worker process: how processes of one engine differ is in no interval; measure with several")
    elif one.scenario.processes < FEWEST:
        found.append(f"{one.scenario.processes} worker processes are too few for 95% intervals; measure with {FEWEST}")
    return found


def _compare(baseline: LatencyResult, candidate: LatencyResult, limits: Sequence[Limit]) -> EngineComparison:
    different = _differences(baseline, candidate)
    before, now = baseline.blocks, candidate.blocks
    uncorrected = ratio = intervals.unpaired_ratio_interval(now, before)
    pace, slope = None, None
    if baseline.pace and candidate.pace and _same_pace(baseline, candidate, different):
        paces = _paces(candidate.pace, candidate), _paces(baseline.pace, baseline)
        corrected = intervals.at_one_pace(now, paces[0], before, paces[1])
        pace, slope, ratio = Bounds.of(intervals.unpaired_ratio_interval(*paces)), corrected.slope, corrected.ratio
    return EngineComparison(
        baseline=baseline.artifact,
        candidate=candidate.artifact,
        baseline_ms=baseline.stats["latency_ms"].median,
        candidate_ms=candidate.stats["latency_ms"].median,
        ratio=Bounds.of(ratio),
        uncorrected=Bounds.of(uncorrected),
        pace=pace,
        slope=slope,
        mann_whitney_p=intervals.mann_whitney(now, before),
        different=different,
        invalid=[
            f"{which}: {reason}"
            for which, one in (("baseline", baseline), ("candidate", candidate))
            if one.verdict.status == "INVALID"
            for reason in one.verdict.reasons or ["no reason is given"]
        ],
        gates=[_gate(now, before, ratio, one) for one in limits],
    )


def _same_pace(baseline: LatencyResult, candidate: LatencyResult, different: Collection[str]) -> bool:
    """Whether one yardstick can tell of both runs how fast the machine was, nothing else, and well enough."""
    both = (baseline, candidate)
    yardsticks = {one.pace and (one.pace.sha256, one.pace.version) for one in both}
    enough = all(one.scenario.processes >= FEWEST for one in both)
    return len(yardsticks) == 1 and enough and not {*_OF_THE_MACHINE} & {*different}


def _paces(pace: Pace, of: LatencyResult) -> list[intervals.Floats]:
    """What the yardstick took in the turns of each of the blocks that intervals resample."""
    return intervals.blocks([np.array([ms]) for ms in pace.rounds_ms], of.scenario.processes)


def _gate(rounds: intervals.Rounds, baseline: intervals.Rounds, median: intervals.Interval, limit: Limit) -> Gate:
    """Percentiles are judged as they were measured: what makes them need not follow the pace."""
    q = limit.quantile
    fewest = min(sum(map(len, rounds)), sum(map(len, baseline)))
    if limit.metric != "median" and fewest < (needed := intervals.samples_needed(q)):
        raise ConfigError(
            f"{fewest} samples are too few for {limit}: {needed} are needed",
            remedy=f"measure both with --iterations {needed}, or more",
        )
    ratio = Bounds.of(median if limit.metric == "median" else intervals.unpaired_ratio_interval(rounds, baseline, q))
    allowed = 1 + limit.share
    decision = "REGRESSION" if ratio.lo > allowed else "UNDECIDED" if ratio.hi > allowed else "PASS"
    return Gate(metric=limit.metric, limit=limit.share, ratio=ratio, decision=decision)
