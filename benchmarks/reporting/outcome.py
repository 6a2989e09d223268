"""What pruning has come to: its prediction held against the measurement, what it took out, how near the peak it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.reporting.rows import Row
from benchmarks.results.schema import Bounds
from benchmarks.results.tables import interval, literal, markdown
from compress.files import MANIFEST, tree_sha256
from compress.prune.allocation.plan import WidthPlan
from compress.run import Run, read_manifest
from compress.targets import profile

PLAN = "plan.json"


@dataclass(frozen=True)
class Section:
    """A table under a heading."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        return f"## {literal(self.title)}\n\n{markdown(self.header, self.rows)}\n"


def plan_of(run: Run) -> WidthPlan | None:
    """The plan by which the exported network was pruned; None where it was not, or where ``prune`` has run since."""
    folder = run.folder("prune")
    if not (folder / PLAN).exists():
        return None
    child = "export"
    for stage in ("finetune", "prune"):
        made = run.folder(child)
        if not (made / MANIFEST).exists() or tree_sha256(run.folder(stage)) not in read_manifest(made).parents.values():
            return None
        child = stage
    return WidthPlan.read(folder / PLAN)


def error(predicted: float, measured: float) -> float:
    """Relative error of a prediction.

    >>> error(1.1, 1.0) > 0
    True
    """
    return predicted / measured - 1


def predictions(plan: WidthPlan, measured: Bounds | None) -> Section | None:
    """Latency before and after; None for a plan without a latency table.

    Args:
        measured: ms of the pruned network; None where it was not measured on the engine that the table is of.
    """
    if plan.latency is None:
        return None
    dense, pruned = plan.latency
    found = ["", ""]
    if measured is not None:
        found = [interval(measured, 3), f"{100 * error(pruned, measured.value):+.1f}"]
    rows = [["dense", f"{dense:.3f}", "", ""], ["pruned", f"{pruned:.3f} ({pruned / dense:.1%})", *found]]
    return Section("INT8 latency, predicted and measured", ["network", "predicted ms", "measured ms", "error %"], rows)


def widths(plan: WidthPlan) -> Section | None:
    """The groups that are narrower, and the blocks that are gone; None where nothing is."""
    rows = [
        [group.name, group.kind, str(group.before), str(group.after), f"{group.after / group.before:.0%}"]
        for group in plan.groups
        if 0 < group.after < group.before
    ]
    rows += [[name, "block", "", "removed", ""] for name in plan.removed]
    if not rows:
        return None
    return Section("Channels before and after", ["group", "kind", "before", "after", "kept"], rows)


def sections(run: Run, rows: Sequence[Row]) -> list[Section]:
    """What stands below the table: prediction and measurement, channels before and after, share of the peak."""
    found: list[Section | None] = []
    if (plan := plan_of(run)) is not None:
        found += [predictions(plan, _as_predicted(rows)), widths(plan)]
    found.append(_utilization(rows))
    return [section for section in found if section is not None]


def _as_predicted(rows: Sequence[Row]) -> Bounds | None:
    """Latency of the INT8 network on the engine that the prediction is for; without layers in float, as it is."""
    for row in reversed(rows):
        made_for = row.metadata.target and profile(row.metadata.target).engines[0]
        if row.metadata.precision == "int8" and row.latency.backend.name == made_for:
            return row.latency.stats["latency_ms"].median
    return None


def _utilization(rows: Sequence[Row]) -> Section | None:
    cells = [
        [row.name, f"{work.gmacs_per_s:.1f}", f"{peak:.1f}", f"{work.gmacs_per_s / peak:.0%}"]
        for row in rows
        if (work := row.latency.work) and (peak := work.peak_gmacs_per_s)
    ]
    title = "Share of the machine's peak (large 3x3 convolutions in the same precision, engine and run)"
    return Section(title, ["network", "GMAC/s", "peak GMAC/s", "share"], cells) if cells else None
