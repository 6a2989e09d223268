"""What the files of a run say, read and checked as a whole before a line of the report is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.reporting.outcome import PLAN, plan_of
from benchmarks.reporting.rows import MeasuredFile, Record
from benchmarks.results.schema import AccuracyResult, LatencyResult, Verdict
from compress.engines.sidecar import engine_sha256
from compress.errors import PipelineError
from compress.files import MANIFEST, file_sha256
from compress.models.model import describe_model
from compress.parse import read
from compress.prune.allocation.plan import WidthPlan
from compress.prune.latency.confirm import ConfirmedFile, Tried
from compress.prune.latency.table import LatencyTable
from compress.prune.stage import CONFIRMED, TABLE
from compress.quantize.sensitivity import SensitivityFile
from compress.run import STAGES, Manifest, Run, read_manifest

PARETO = "pareto"
_WHOLE = "no layer in float"  # the end of its name; see ``benchmarks.summary.networks``


@dataclass(frozen=True)
class Network:
    """A measured network: a row of ``summary.json`` or of ``pareto.json``.

    Attributes:
        accuracy: None for a backbone.
        predicted: ms by the latency table; only in ``pareto.json``.
    """

    name: str
    params: int
    macs: int
    accuracy: AccuracyResult | None
    latency: LatencyResult
    predicted: float | None = None

    @classmethod
    def of(cls, row: Record) -> Network:
        return cls(row.name, row.params, row.macs, row.accuracy, row.latency, row.predicted_ms)

    @property
    def ms(self) -> float:
        """Median latency."""
        return self.latency.stats["latency_ms"].median.value

    @property
    def verdicts(self) -> list[Verdict]:
        """Whether each of its measurements may be used."""
        return [result.verdict for result in (self.accuracy, self.latency) if result is not None]

    @property
    def for_comparison(self) -> bool:
        """It ships in another form, with layers in float, and shows what these cost."""
        return self.name.endswith(_WHOLE)

    @property
    def valid(self) -> bool:
        return all(verdict.status == "VALID" for verdict in self.verdicts)


@dataclass(frozen=True)
class RunRecord:
    """A run as its files tell it; None and empty where there is no file.

    Attributes:
        title: what was measured on what.
        networks: of ``summary.json``; the first is what the others are compared with.
        front: the title of ``pareto.json``; its rows are ``points``.
        plan: by which the measured networks were pruned.
        tried: the plans near the budget that ``prune`` has measured, from ``confirmed.json``.
        table: the latency table that the plan was made with.
        sensitivity: SQNR by layer, from ``sensitivity.json``.
        manifests: ``stage.json`` by stage, in the order of the stages.
        model: ``arch``, ``classes`` and ``preprocess`` of the baseline.
        stale: what has changed since it was measured.
    """

    directory: Path
    title: str
    networks: tuple[Network, ...]
    front: str | None
    points: tuple[Network, ...]
    plan: WidthPlan | None
    tried: tuple[Tried, ...]
    table: LatencyTable | None
    sensitivity: SensitivityFile | None
    manifests: Mapping[str, Manifest]
    model: Mapping[str, Any]
    stale: tuple[str, ...]

    @property
    def result(self) -> Network:
        """What the run has come to: the fastest INT8 network that ships, a valid one where there is one."""
        shipped = [n for n in self.networks[1:] if "INT8" in n.name and not n.for_comparison]
        return min(shipped or self.networks[-1:], key=lambda n: (not n.valid, n.ms))

    @property
    def as_predicted(self) -> Network | None:
        """The INT8 network that was measured where the latency table was, without layers in float; None if none was."""
        if self.table is None or self.table.imported:
            return None
        place = self.table.place
        wanted = (place.engine, place.batch, place.threads)
        found = [
            n
            for n in self.networks
            if "INT8" in n.name
            and wanted == (n.latency.backend.name, n.latency.scenario.batch, n.latency.modes.get("threads"))
        ]
        return found[-1] if found else None


def read_record(directory: Path) -> RunRecord:
    """Read a run's folder.

    Raises:
        PipelineError: it is no run, was not measured, or one of its files is damaged.
    """
    if not directory.is_dir():
        raise PipelineError(f"there is no folder {directory}", remedy="name a run's folder, such as runs/resnet18")
    manifests = _manifests(directory)
    summary = directory / "summary.json"
    if not summary.exists():
        if not manifests:
            raise PipelineError(
                f"{directory} is not a run: no stage has written into it",
                remedy="`python -m compress all` makes a run, `make help` lists the steps",
            )
        raise PipelineError(
            f"{directory} has no summary.json: nothing was measured",
            remedy=f"python -m benchmarks.summary --run {directory} (with the --config and --set of the run)",
        )
    record = read(summary, MeasuredFile, remedy=f"make it again: python -m benchmarks.summary --run {directory}")
    networks = tuple(map(Network.of, record.rows))
    front, points = _front(directory)
    plan = plan_of(Run(directory))
    return RunRecord(
        directory,
        record.title,
        networks,
        front,
        points,
        plan,
        _tried(directory) if plan else (),
        _table(directory, manifests.get("prune")) if plan else None,
        _sensitivity(directory),
        manifests,
        _model(directory / "baseline" / "model.json"),
        tuple(_stale(directory, networks, plan)),
    )


def _model(path: Path) -> Mapping[str, Any]:
    """What a model card says of ``model.json``; empty where there is no file."""
    if not path.exists():
        return {}
    record = describe_model(path.parent)
    return {"arch": record.arch, "classes": list(record.classes), "preprocess": record.preprocess.to_json()}


def _manifests(directory: Path) -> dict[str, Manifest]:
    found = {}
    for stage in STAGES:
        path = directory / stage / MANIFEST
        if path.exists():
            found[stage] = read_manifest(path.parent)
    return found


def _front(directory: Path) -> tuple[str | None, tuple[Network, ...]]:
    """The run's own measured front, or that of the run which it is a point of."""
    place = directory.resolve()
    folder = place.parent if place.parent.name == PARETO else directory / PARETO
    path = folder / "pareto.json"
    if not path.exists():
        return None, ()
    record = read(path, MeasuredFile, remedy="make it again: python -m benchmarks.pareto --config FILE")
    return record.title, tuple(map(Network.of, record.rows))


def _tried(directory: Path) -> tuple[Tried, ...]:
    path = directory / "prune" / CONFIRMED
    if not path.exists():
        return ()
    return read(path, ConfirmedFile, remedy="make it again: python -m compress prune --force").tried


def _table(directory: Path, manifest: Manifest | None) -> LatencyTable | None:
    """The table that ``prune`` has read, known by its digest, wherever the run's folder was moved to."""
    parents = {} if manifest is None else manifest.parents
    places = [directory / TABLE, *(Path(name) for name in parents if name.endswith(".json"))]
    found = [path for path in places if path.is_file() and file_sha256(path) in parents.values()]
    return LatencyTable.read(found[0]) if found else None


def _sensitivity(directory: Path) -> SensitivityFile | None:
    path = directory / "sensitivity" / "sensitivity.json"
    if not path.exists():
        return None
    again = f"make it again: python -m compress sensitivity --set run.dir={directory}"
    return read(path, SensitivityFile, remedy=again)


def _stale(directory: Path, networks: tuple[Network, ...], plan: WidthPlan | None) -> Iterator[str]:
    for network in networks:
        measured = network.latency.artifact
        path = directory.joinpath(*Path(measured.path).parts[-2:])  # the run may have been moved
        if path.exists() and engine_sha256(path) != measured.sha256:
            yield f"{network.name}: {path.parent.name}/{path.name} has changed since it was measured"
    if plan is None and (directory / "prune" / PLAN).exists():
        yield "prune has run since the export: its plan is not that of the measured networks, and is left out"
