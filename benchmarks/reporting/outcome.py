"""The results of pruning: predicted against measured latency, the removed channels, and the share of the peak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ValidationError

from benchmarks.results import tables
from benchmarks.results.base import Bounds
from benchmarks.results.latency import Work
from benchmarks.results.networks import MeasuredNetwork
from benchmarks.results.tables import interval, literal, markdown
from benchmarks.timing.devices import on_gpu
from compress.config import PruneConfig
from compress.console import Console
from compress.files import MANIFEST, file_sha256, tree_sha256
from compress.graph.plan import WidthPlan
from compress.parse import read
from compress.prune.latency.table import LatencyTable, Machine
from compress.prune.sizes import SIZES, SizesFile
from compress.prune.stage import PLAN, TABLE
from compress.run import Run, read_manifest

PARETO = "pareto"


@dataclass(frozen=True)
class Section:
    """A table under a heading.

    Attributes:
        note: a sentence below it; empty: none.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def show(self, console: Console) -> None:
        """Print it, and the note below."""
        tables.show(console, self.title, self.header, self.rows)
        if self.note:
            console.print(f"\n{self.note}", soft_wrap=True)

    def markdown(self) -> str:
        note = f"\n{literal(self.note)}\n" if self.note else ""
        return f"## {literal(self.title)}\n\n{markdown(self.header, self.rows)}\n{note}"


def plan_of(run: Run) -> WidthPlan | None:
    """The plan of the exported network; None if it was not pruned, or if ``prune`` has run since the export."""
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


def budget_ms(run: Run, plan: WidthPlan) -> float | None:
    """The latency budget of pruning, in ms by the latency table; None if the budget was of another cost."""
    asked = read_manifest(run.folder("prune")).settings.get("prune", {}).get("latency")
    if asked is None or plan.latency is None:
        return None
    try:
        budget = PruneConfig(latency=asked).budgets()[0]
    except ValidationError:  # as another version wrote it
        return None
    return budget.limit if budget.fraction is None else budget.fraction * plan.latency[0]


def predictions(plan: WidthPlan, budget: float | None, dense: Bounds | None, pruned: Bounds | None) -> Section | None:
    """INT8 latency before and after: budget, planned and measured; None for a plan without a latency table.

    Args:
        budget: ms; None: no latency budget.
        dense, pruned: measured ms of the two networks; None if one was not measured on the table's machine.
    """
    if plan.latency is None:
        return None
    full = plan.latency[0]
    rows = []
    for name, asked, planned, measured in (
        ("dense", None, full, dense),
        ("pruned", budget, plan.latency[1], pruned),
    ):
        found = ["", ""]
        if measured is not None:
            found = [interval(measured, 3), f"{100 * error(planned, measured.value):+.1f}"]
        rows.append([name, "" if asked is None else _of(asked, full), _of(planned, full), *found])
    header = ["network", "budget ms", "planned ms", "measured ms", "error of the plan %"]
    return Section("INT8 latency: asked for, planned, measured", header, rows)


def _sizes(run: Run) -> Section | None:
    """The input sizes that pruning has chosen from; None where there was only one."""
    path = run.folder("prune") / SIZES
    if not path.exists():
        return None
    record = read(path, SizesFile, remedy="run stage prune again")
    rows = [
        [
            str(one.size),
            f"{one.unpruned:.3f}",
            "" if one.loss is None else f"{one.loss:.3f}",
            "" if one.above is None else interval(Bounds(**asdict(one.above)), 3),
            "" if one.predicted_ms is None else f"{one.predicted_ms:.3f}",
            "taken" if one.size == record.taken else "no plan meets the budget" if one.loss is None else "",
        ]
        for one in record.tried
    ]
    header = ["input", "loss, unpruned", "loss, pruned", "above the taken one's", "planned ms", ""]
    note = (
        "Losses: cross-entropy with the classes that the unpruned network predicts at its own size, in nats an image, "
        "before the final training, on images that the judged weights were not solved on. Where "
        "the interval contains 0, the images do not tell that size from the one that was taken."
    )
    return Section("Input sizes that pruning chose from", header, rows, note)


def _of(ms: float, full: float) -> str:
    """
    >>> _of(4.0, 4.0), _of(2.0, 4.0)
    ('4.000', '2.000 (50.0%)')
    """
    return f"{ms:.3f}" if ms == full else f"{ms:.3f} ({ms / full:.1%})"


def widths(plan: WidthPlan) -> Section | None:
    """The groups that pruning narrowed and the blocks that it removed; None if there are none."""
    rows = [
        [group.name, group.kind, str(group.before), str(group.after), f"{group.after / group.before:.0%}"]
        for group in plan.groups
        if 0 < group.after < group.before
    ]
    rows += [[name, "block", "", "removed", ""] for name in plan.removed]
    if not rows:
        return None
    return Section("Channels before and after", ["group", "kind", "before", "after", "kept"], rows)


def table_of(run: Run) -> LatencyTable | None:
    """The table that ``prune`` has read. It is found by its digest, so the run's folder may have been moved."""
    if not (run.folder("prune") / MANIFEST).exists():
        return None
    parents = read_manifest(run.folder("prune")).parents
    places = [run.directory / TABLE, *(Path(name) for name in parents if name.endswith(".json"))]
    found = [path for path in places if path.is_file() and file_sha256(path) in parents.values()]
    return LatencyTable.read(found[0]) if found else None


def measured_where(network: MeasuredNetwork, place: Machine) -> bool:
    """Whether a network was measured like a table: same engine, target, device, threads and batch."""
    latency, host = network.latency, network.latency.host
    gpu = latency.device == "cuda" or on_gpu(place.engine)
    same_device = any(name.startswith(place.device) for name in host.gpus) if gpu else host.cpu == place.device
    here = (latency.backend.name, latency.modes.get("threads"), latency.scenario.batch)
    same_target = network.target in ("", place.target)  # older files do not state it
    return here == (place.engine, place.threads, place.batch) and same_device and same_target


def as_predicted(
    networks: Sequence[MeasuredNetwork], table: LatencyTable | None
) -> tuple[MeasuredNetwork | None, MeasuredNetwork | None]:
    """The dense and the pruned INT8 network that were measured like the latency table; None: there is none.

    Of several networks the last is taken: it has no layers in float, like the networks of the table.
    """
    if table is None or table.imported:
        return None, None
    found = [network for network in networks if network.int8 and measured_where(network, table.place)]
    dense, pruned = ([network for network in found if network.dense == wanted] for wanted in (True, False))
    return dense[-1] if dense else None, pruned[-1] if pruned else None


def median(network: MeasuredNetwork | None) -> Bounds | None:
    """The median latency of a network in ms."""
    return None if network is None else network.latency.stats["latency_ms"].median


def sections(run: Run, networks: Sequence[MeasuredNetwork]) -> list[Section]:
    """The tables below the main table: latency budget, planned and measured; channels; share of the peak."""
    found: list[Section | None] = []
    if (plan := plan_of(run)) is not None:
        dense, pruned = map(median, as_predicted(networks, table_of(run)))
        found += [predictions(plan, budget_ms(run, plan), dense, pruned), _sizes(run), widths(plan)]
    found.append(_utilization(networks))
    return [section for section in found if section is not None]


def share_of_peak(work: Work | None) -> str:
    """The share of the machine's peak that a network reaches, with a mark above 100%; empty if it is not known.

    >>> share_of_peak(Work(macs=1, precision="int8", gmacs_per_s=82.0, peak_gmacs_per_s=50.0))
    '164%: above the peak, no share'
    """
    if work is None or not work.peak_gmacs_per_s:
        return ""
    share = work.gmacs_per_s / work.peak_gmacs_per_s
    return f"{share:.0%}: above the peak, no share" if share > 1 else f"{share:.0%}"


ABOVE_PEAK = (
    "a network above 100% of the peak: the convolutions that the peak is taken from ran slower than the network's own, "
    "because the machine was slower then or has no fast kernel for them; do not read it as a share"
)


def _utilization(networks: Sequence[MeasuredNetwork]) -> Section | None:
    rows = [
        [network.name, f"{work.gmacs_per_s:.1f}", f"{work.peak_gmacs_per_s:.1f}", share_of_peak(work)]
        for network in networks
        if (work := network.latency.work) and work.peak_gmacs_per_s
    ]
    title = "Share of the machine's peak (large 3x3 convolutions in the same precision, engine and run)"
    note = ABOVE_PEAK if any("above" in row[-1] for row in rows) else ""
    return Section(title, ["network", "GMAC/s", "peak GMAC/s", "share"], rows, note) if rows else None
