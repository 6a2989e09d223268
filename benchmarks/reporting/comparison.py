"""Write a comparison of two runs as a table with notes, on a terminal and in Markdown."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results.comparison import Limit
from benchmarks.results.latency import EngineComparison, Gate, RunComparison
from benchmarks.results.tables import interval, literal, markdown, show
from compress.console import Console


def header(comparison: RunComparison) -> list[str]:
    """The columns of ``rows``."""
    limits = [str(Limit(gate.metric, gate.limit)) for gate in comparison.engines[0].gates]
    return ["engine", "baseline ms", "median ms", "machine", "ratio", "p", *limits]


def rows(comparison: RunComparison) -> list[list[str]]:
    """A comparison as the cells of a table, one row per pair of engines."""
    return [
        [
            _title(one),
            interval(one.baseline_ms),
            interval(one.candidate_ms),
            interval(one.pace, 3) if one.pace else "",
            interval(one.ratio, 3),
            f"{one.mann_whitney_p:.2g}",
            *("INVALID" if one.invalid else gate.decision for gate in one.gates),
        ]
        for one in comparison.engines
    ]


def notes(comparison: RunComparison) -> list[str]:
    """The notes below the table, one line each."""
    found = [f"geometric mean of the ratios: {comparison.geomean:.3f}"]
    if any(one.pace for one in comparison.engines):
        found.append(
            "machine: how many times as long the reference network took as in the baseline; ratios are as measured"
        )
    for one in comparison.engines:
        name = _title(one)
        if one.pace is None:
            found.append(f"{name}: the machine's pace is not known: no reference network ran in both runs")
        found += [f"INVALID: {name}: {reason}" for reason in one.invalid]
        found += [judgement(name, gate) for gate in one.gates if gate.decision != "PASS" and not one.invalid]
        found += [f"different: {name}: {what}: {a} against {b}" for what, (a, b) in one.different.items()]
    found += [f"in one run only, not compared: {path}" for path in comparison.unpaired]
    return [*found, *(f"warning: {text}" for text in comparison.warnings)]


def present(console: Console, comparison: RunComparison, title: str) -> None:
    """Print the table and the notes."""
    show(console, title, header(comparison), rows(comparison))
    for note in notes(comparison):
        console.print(note, soft_wrap=True)


def as_markdown(comparison: RunComparison, title: str) -> str:
    """The table and the notes, for a pull request."""
    bullets = "".join(f"- {literal(note)}\n" for note in notes(comparison))
    return f"{title}\n\n{markdown(header(comparison), rows(comparison))}\n\n{bullets}"


def _title(one: EngineComparison) -> str:
    before, now = Path(one.baseline.path).name, Path(one.candidate.path).name
    return now if before == now else f"{now} over {before}"


def judgement(name: str, gate: Gate) -> str:
    """The decision of a gate about the engine of that name, in one line."""
    ratio, allowed = interval(gate.ratio, 3), 1 + gate.limit
    told = f"{gate.decision}: {name}: {gate.metric} ratio {ratio}"
    if gate.decision != "UNDECIDED":
        return f"{told}, up to {allowed:g} is allowed"
    if gate.ratio.lo <= allowed < gate.ratio.hi:
        return f"{told} reaches beyond {allowed:g}; measure longer to decide"
    return f"{told}, up to {allowed:g} is allowed, but the machine's pace changed; measure both in one run to decide"
