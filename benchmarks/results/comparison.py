"""Decide whether an engine is slower than another one, of the same run or of an earlier run, by more than a limit.

Engines of one run took turns, so they are compared process by process (``intervals.ratio_interval``,
``intervals.paired_quantile_ratio``), and a disturbance that slowed both cancels. Separate runs did not take turns, so
their processes cannot be paired (``intervals.unpaired_ratio_interval``), and engines are compared only if everything
else that a latency depends on is the same.

The interval of the ratio decides about a limit, not the estimate. A slow-down is a regression if the whole 95% interval
lies above the limit: if the true ratio is exactly at the limit, noise within the runs fails about one of forty builds,
and fewer if it is below. If the interval contains the limit, the gate is UNDECIDED: it passes, and the result says so.

An interval cannot show that the whole machine was slower in one of two separate runs. Both runs timed the same
reference network in every round. If the interval of its ratio excludes 1, the result warns, and a limit is decided only
if the measured ratio and the ratio divided by the reference network's give the same decision.
docs/decisions/0015-compare-warns-about-pace.md has the reasons. Other work on the machine is reported as warnings.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.stats import gmean

from benchmarks.results.base import Bounds
from benchmarks.results.latency import EngineComparison, Gate, LatencyResult, Pace, RunComparison
from benchmarks.statistics import intervals
from benchmarks.timing.devices import on_gpu
from benchmarks.timing.machine import concerns, shared, tool
from benchmarks.timing.worker import FEWEST
from compress.errors import ConfigError

REGRESSION, INVALID = 3, 4
_OF_THE_MACHINE = ("processor", "logical processors", "governor", "affinity", "threads")
_LIMIT = re.compile(r"(median|p\d\d(?:\.\d+)?):(\d+(?:\.\d+)?)%")

Couple = tuple[LatencyResult, LatencyResult]
Decision = Literal["PASS", "UNDECIDED", "REGRESSION"]


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
    """A metric and the slow-down that is allowed.

    Raises:
        ConfigError: the text is not of the form METRIC:P%.

    >>> limit("median:5%")
    Limit(metric='median', share=0.05)
    """
    found = _LIMIT.fullmatch(text)
    if found is None:
        raise ConfigError(f"'{text}' is not a limit such as median:5% or p90:10%")
    return Limit(found[1], float(found[2]) / 100)


def compare_runs(
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
        pairs: (engine of the baseline, engine of the candidate), by file name or path; none: all engines with the same
            file name, or the only one of each run.
        allow_different: compare even if the conditions differ; the result lists the differences.

    Raises:
        ConfigError: no pair of engines, a name that is missing or not unique, different conditions, or too few samples
            for the percentile of a limit.
    """
    couples = pair_engines(baseline, candidate, pairs)
    if not allow_different:
        _refuse_differences(couples)
    engines = [_compare_engines(before, now, limits) for before, now in couples]
    paired = [id(result) for couple in couples for result in couple]
    return RunComparison(
        tool=tool(),
        argv=list(argv),
        engines=engines,
        unpaired=[one.artifact.path for one in (*baseline, *candidate) if id(one) not in paired],
        geomean=float(gmean([one.ratio.value for one in engines])),
        warnings=[*_machine(couples), *_pace_warnings(engines)],
    )


def pair_engines(
    baseline: Sequence[LatencyResult], candidate: Sequence[LatencyResult], chosen: Sequence[tuple[str, str]] = ()
) -> list[Couple]:
    """Which engine is compared with which; see ``compare_runs``."""
    if not chosen:
        if len(baseline) == len(candidate) == 1:
            return [(baseline[0], candidate[0])]
        common = {_name(one): None for one in baseline if _name(one) in map(_name, candidate)}
        chosen = [(name, name) for name in common]
    if not chosen:
        raise ConfigError(
            f"no engine is in both runs: {', '.join(map(_name, baseline))} against {', '.join(map(_name, candidate))}",
            remedy="choose two with --pair A B",
        )
    return [(_find(baseline, before, "baseline"), _find(candidate, now, "candidate")) for before, now in chosen]


def conditions(result: LatencyResult) -> dict[str, str]:
    """The conditions that a latency depends on besides the engine file; compared results must agree in all of them."""
    host, scenario, backend = result.host, result.scenario, result.backend
    affinity = result.config.get("affinity")
    return {
        "processor": host.cpu,
        "logical processors": str(host.cores),
        "governor": result.monitor.before.governor or "not reported",
        "affinity": ",".join(map(str, affinity)) if affinity else "none",
        "device": result.device,
        **({"GPUs": "; ".join(host.gpus)} if result.device == "cuda" or on_gpu(backend.name) else {}),
        "engine": f"{backend.name} {backend.version}",
        "provider": backend.actual,
        "parallel streams": str(scenario.streams),
        "batch": str(scenario.batch),
        "input shape": "x".join(map(str, scenario.shape)),
        "inputs": scenario.inputs,
        **{name: str(value) for name, value in result.modes.items()},
    }


def exit_code(comparison: RunComparison) -> int:
    """The exit code: 4 if a measurement is INVALID, else 3 if there is a regression, else 0."""
    if any(one.invalid for one in comparison.engines):
        return INVALID
    return gate_exit_code(gate for one in comparison.engines for gate in one.gates)


def gate_in_run(results: Sequence[LatencyResult], limits: Sequence[Limit]) -> list[LatencyResult]:
    """Check the limits between each engine of a run and the first one; see ``LatencyResult.comparison``.

    Raises:
        ConfigError: too few samples for the percentile of a limit.
    """
    first = results[0]
    return [first, *(_gated(one, first, limits) for one in results[1:])]


def gate_exit_code(gates: Iterable[Gate]) -> int:
    """The exit code: 3 if there is a regression, else 0."""
    return REGRESSION if any(gate.decision == "REGRESSION" for gate in gates) else 0


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
            remedy="measure both under the same conditions, or compare them anyway with --allow-different",
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
    """Warnings about causes, other than the engine, of a difference between two runs."""
    config = one.config
    threads = config.get("threads", 1) * one.scenario.streams
    found = concerns(one.monitor, threads, config.get("affinity"))
    found += shared(one.contention)
    if one.scenario.processes == 1:
        found.append("only one worker process: the interval misses how processes differ; measure with several")
    elif one.scenario.processes < FEWEST:
        found.append(f"{one.scenario.processes} worker processes are too few for 95% intervals; measure with {FEWEST}")
    return found


def _compare_engines(baseline: LatencyResult, candidate: LatencyResult, limits: Sequence[Limit]) -> EngineComparison:
    different = _differences(baseline, candidate)
    now, before = candidate.blocks, baseline.blocks
    pace = _pace_ratio(baseline, candidate, different)
    machine = pace.value if pace and _differs(pace) else 1.0
    return EngineComparison(
        baseline=baseline.artifact,
        candidate=candidate.artifact,
        baseline_ms=baseline.stats["latency_ms"].median,
        candidate_ms=candidate.stats["latency_ms"].median,
        ratio=Bounds.of(intervals.unpaired_ratio_interval(now, before)),
        pace=pace,
        mann_whitney_p=intervals.mann_whitney(now, before),
        different=different,
        invalid=[
            f"{which}: {reason}"
            for which, one in (("baseline", baseline), ("candidate", candidate))
            if one.verdict.status == "INVALID"
            for reason in one.verdict.reasons or ["no reason given"]
        ],
        gates=[_unpaired_gate(now, before, one, machine) for one in limits],
    )


def _pace_ratio(baseline: LatencyResult, candidate: LatencyResult, different: Collection[str]) -> Bounds | None:
    """How many times as long the reference network took; None if the network or the machine was not the same."""
    before, now = baseline.pace, candidate.pace
    if before is None or now is None or (before.sha256, before.version) != (now.sha256, now.version):
        return None
    if {*_OF_THE_MACHINE} & {*different}:
        return None
    return Bounds.of(intervals.unpaired_ratio_interval(_paces(now, candidate), _paces(before, baseline)))


def _paces(pace: Pace, of: LatencyResult) -> list[intervals.Floats]:
    """The reference network's times, in the blocks that intervals resample."""
    return intervals.blocks([np.array([ms]) for ms in pace.rounds_ms], of.scenario.processes)


def _differs(pace: Bounds) -> bool:
    return pace.lo > 1 or pace.hi < 1


def _pace_warnings(engines: Sequence[EngineComparison]) -> list[str]:
    """Warnings about the machine's pace, once for all engines of a run: they share its reference network."""
    found = {
        f"the reference network took {one.pace.value:.3f} [{one.pace.lo:.3f}, {one.pace.hi:.3f}] times as long as in "
        "the baseline: the machine was not equally fast, which may explain the ratios": None
        for one in engines
        if one.pace and _differs(one.pace)
    }
    return list(found)


def _gated(one: LatencyResult, first: LatencyResult, limits: Sequence[Limit]) -> LatencyResult:
    assert one.comparison is not None
    gates = [_paired_gate(one, first, one.comparison.ratio, limit) for limit in limits]
    return one.model_copy(update={"comparison": one.comparison.model_copy(update={"gates": gates})})


def _paired_gate(one: LatencyResult, first: LatencyResult, median: Bounds, limit: Limit) -> Gate:
    if limit.metric == "median":
        return _decide(limit, median)
    now, before = one.blocks, first.blocks
    _require_samples(now, before, limit)
    return _decide(limit, Bounds.of(intervals.paired_quantile_ratio(now, before, limit.quantile)))


def _unpaired_gate(rounds: intervals.Rounds, baseline: intervals.Rounds, limit: Limit, machine: float) -> Gate:
    _require_samples(rounds, baseline, limit)
    return _decide(limit, Bounds.of(intervals.unpaired_ratio_interval(rounds, baseline, limit.quantile)), machine)


def _require_samples(rounds: intervals.Rounds, baseline: intervals.Rounds, limit: Limit) -> None:
    fewest = min(sum(map(len, rounds)), sum(map(len, baseline)))
    if limit.metric != "median" and fewest < (needed := intervals.samples_needed(limit.quantile)):
        raise ConfigError(
            f"{fewest} samples are too few for {limit}: {needed} are needed",
            remedy=f"measure both with --iterations {needed}, or more",
        )


def _decide(limit: Limit, ratio: Bounds, machine: float = 1.0) -> Gate:
    """Decide about a limit; UNDECIDED if the ratio and the ratio divided by the machine's disagree."""
    allowed = 1 + limit.share

    def decision(low: float, high: float) -> Decision:
        return "REGRESSION" if low > allowed else "UNDECIDED" if high > allowed else "PASS"

    measured = decision(ratio.lo, ratio.hi)
    agreed = measured == decision(ratio.lo / machine, ratio.hi / machine)
    return Gate(metric=limit.metric, limit=limit.share, ratio=ratio, decision=measured if agreed else "UNDECIDED")
