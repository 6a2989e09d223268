"""Print the tables of any result file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from benchmarks.profiling.measure import summarize
from benchmarks.reporting import comparison, latency, rows
from benchmarks.reporting.accuracy import report, report_fidelity
from benchmarks.reporting.choices import which
from benchmarks.reporting.outcome import widths
from benchmarks.results.accuracy import AccuracyResult
from benchmarks.results.fidelity import FidelityResult
from benchmarks.results.latency import LatencyResult, RunComparison
from benchmarks.results.networks import ParetoFile, SummaryFile
from benchmarks.results.plans import PlanLatencyFile
from benchmarks.results.tables import interval, show
from compress.console import Console
from compress.errors import ConfigError
from compress.graph.plan import WidthPlan
from compress.parse import parse, read_bytes
from compress.prune.latency.table import LatencyTable
from compress.prune.stage import describe

_REMEDY = "make it again with the command that wrote it"


@dataclass(frozen=True)
class Shown:
    """A sort of file that can be printed.

    Attributes:
        name: its name, in words.
        fields: fields that together occur only in such files.
        show: the function that prints one.
    """

    name: str
    fields: frozenset[str]
    show: Callable[[Path, bytes, Console], None]


def show_file(path: Path, console: Console) -> None:
    """Print a result file as the command that wrote it did.

    Raises:
        PipelineError: the file is absent or damaged.
        ConfigError: it is not a file that can be printed.
    """
    content = read_bytes(path, remedy="give a JSON file that one of our commands has written")
    kind = _kind_of(content)
    if kind is None:
        raise ConfigError(
            f"{path} cannot be shown: it is not a known result file",
            remedy=f"known: {', '.join(one.name for one in KINDS)}",
        )
    kind.show(path, content, console)


def _kind_of(content: bytes) -> Shown | None:
    """Recognize a file by its fields; a list of results by the fields of its first."""
    try:
        found = from_json(content)
    except ValueError:
        return None
    first = found[0] if isinstance(found, list) and found else found
    fields = _fields(first)
    return next((kind for kind in KINDS if kind.fields <= fields), None)


def _fields(found: Any) -> set[str]:
    """The fields of a record; a result of ``benchmarks`` also has ``kind=...``."""
    if not isinstance(found, Mapping):
        return set()
    return {*found, f"kind={found.get('kind')}"}


def _show_results(path: Path, content: bytes, console: Console) -> None:
    """Print latencies, and the comparison with an earlier run if there is one."""
    found = parse(content, list[LatencyResult | RunComparison], path, remedy=_REMEDY)
    measured = [one for one in found if isinstance(one, LatencyResult)]
    if measured:
        show(console, latency.title(measured), latency.HEADER, latency.rows(measured))
        for remark in latency.remarks(measured):
            console.print(remark, soft_wrap=True)
    for one in found:
        if isinstance(one, RunComparison):
            comparison.present(console, one, "over an earlier run, a ratio below 1 is faster")


def _show_accuracy(path: Path, content: bytes, console: Console) -> None:
    for one in parse(content, list[AccuracyResult | FidelityResult], path, remedy=_REMEDY):
        if isinstance(one, FidelityResult):
            report_fidelity(one, console)
        else:
            report(one, console, classes=False)


def _show_networks(path: Path, content: bytes, console: Console) -> None:
    """``summary.json``, and a ``pareto.json`` of an earlier version."""
    found = parse(content, SummaryFile, path, remedy=_REMEDY)
    show(console, found.title, *rows.table(found.rows))
    if found.plan is not None and (section := widths(found.plan)) is not None:
        console.print()
        section.show(console)
    for remark in rows.remarks(found.rows):
        console.print(remark, soft_wrap=True)


def _show_front(path: Path, content: bytes, console: Console) -> None:
    found = parse(content, ParetoFile, path, remedy=_REMEDY)
    show(console, found.title, *rows.table(found.rows))
    console.print()
    which(found.rows).show(console)
    for remark in [*found.left_out, *rows.remarks(found.rows)]:
        console.print(remark, soft_wrap=True)


def _show_plan(path: Path, _: bytes, console: Console) -> None:
    for line in describe(WidthPlan.read(path)):
        console.print(line, soft_wrap=True)


def _show_table(path: Path, _: bytes, console: Console) -> None:
    summarize(LatencyTable.read(path), path, console)


def _show_plan_latencies(path: Path, content: bytes, console: Console) -> None:
    found = parse(content, PlanLatencyFile, path, remedy=_REMEDY)
    title = f"latency over the unpruned network's, {found.target.name} on {found.target.engine}; 95% intervals"
    show(console, title, ["plan", "measured"], [[one.plan, interval(one.ratio, 3)] for one in found.plans])


KINDS = (
    Shown("results of latency", frozenset({"kind=latency"}), _show_results),
    Shown("results of compare", frozenset({"kind=comparison"}), _show_results),
    Shown("results of accuracy", frozenset({"kind=accuracy"}), _show_accuracy),
    Shown("results of accuracy without classes", frozenset({"kind=fidelity"}), _show_accuracy),
    Shown("pareto.json", frozenset({"title", "rows", "left_out"}), _show_front),
    Shown("summary.json", frozenset({"title", "rows", "schema_version"}), _show_networks),
    Shown("latency_table.json", frozenset({"place", "segments", "rows"}), _show_table),
    Shown("plan.json", frozenset({"groups", "before", "after"}), _show_plan),
    Shown("results of plan-latency", frozenset({"target", "effort", "plans"}), _show_plan_latencies),
)
