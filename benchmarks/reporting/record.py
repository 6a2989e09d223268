"""Read and check all files of a run before the report is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.reporting.outcome import PARETO, budget_ms, plan_of, table_of
from benchmarks.results.networks import MeasuredNetwork, ParetoFile, SummaryFile
from compress.engines.sidecar import engine_sha256
from compress.errors import PipelineError
from compress.files import MANIFEST
from compress.graph.plan import WidthPlan
from compress.models.model import describe_model
from compress.parse import read
from compress.prune.latency.confirm import ConfirmedFile, Tried
from compress.prune.latency.table import LatencyTable
from compress.prune.stage import CONFIRMED, PLAN
from compress.quantize.sensitivity import SensitivityFile
from compress.run import STAGES, Manifest, Run, read_manifest


@dataclass(frozen=True)
class RunRecord:
    """The contents of a run's files; None or empty if there is no file.

    Attributes:
        title: the network, images, engine and machine of the measurement, in one line.
        networks: the networks of ``summary.json``; the others are compared with the first.
        front: ``pareto.json``.
        plan: the plan of the measured networks.
        budget: the latency budget of pruning, in ms by the latency table.
        tried: the plans near the budget that ``prune`` has measured, from ``confirmed.json``.
        table: the latency table that the plan was made with.
        sensitivity: SQNR by layer, from ``sensitivity.json``.
        manifests: ``stage.json`` by stage, in the order of the stages.
        model: ``arch``, ``classes`` and ``preprocess`` of the baseline.
        stale: messages about files that have changed since the measurement.
    """

    directory: Path
    title: str
    networks: tuple[MeasuredNetwork, ...]
    front: ParetoFile | None
    plan: WidthPlan | None
    budget: float | None
    tried: tuple[Tried, ...]
    table: LatencyTable | None
    sensitivity: SensitivityFile | None
    manifests: Mapping[str, Manifest]
    model: Mapping[str, Any]
    stale: tuple[str, ...]

    @property
    def result(self) -> MeasuredNetwork:
        """The network that the report is about: the fastest INT8 network that ships, a VALID one if there is one."""
        shipped = [n for n in self.networks[1:] if n.int8 and not n.for_comparison]
        pruned = [n for n in shipped if not n.dense]
        return min(pruned or shipped or self.networks[-1:], key=lambda n: (not n.valid, n.latency_ms))


def read_record(directory: Path) -> RunRecord:
    """Read a run's folder.

    Raises:
        PipelineError: the folder is not a run, was not measured, or has a damaged file.
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
    record = read(summary, SummaryFile, remedy=f"make it again: python -m benchmarks.summary --run {directory}")
    front = _front(directory)
    run = Run(directory)
    plan = plan_of(run)
    return RunRecord(
        directory,
        record.title,
        record.rows,
        front,
        plan,
        budget_ms(run, plan) if plan else None,
        _tried(directory) if plan else (),
        table_of(run) if plan else None,
        _sensitivity(directory),
        manifests,
        _model(directory),
        tuple(_stale(directory, (*record.rows, *(front.rows if front else ())), plan)),
    )


def _model(directory: Path) -> Mapping[str, Any]:
    """The fields of ``model.json`` that the model card shows, of the network that ships; empty if there is no file."""
    folders = [directory / stage for stage in ("quantize", "baseline")]
    found = [folder for folder in folders if (folder / "model.json").exists()]
    if not found:
        return {}
    record = describe_model(found[0])
    return {"arch": record.arch, "classes": list(record.classes), "preprocess": record.preprocess.to_json()}


def _manifests(directory: Path) -> dict[str, Manifest]:
    found = {}
    for stage in STAGES:
        path = directory / stage / MANIFEST
        if path.exists():
            found[stage] = read_manifest(path.parent)
    return found


def _front(directory: Path) -> ParetoFile | None:
    """The measured front of the run, or of the parent run if this run is one of its points."""
    place = directory.resolve()
    folder = place.parent if place.parent.name == PARETO else directory / PARETO
    path = folder / "pareto.json"
    if not path.exists():
        return None
    record = read(path, ParetoFile, remedy="make it again: python -m benchmarks.pareto --config FILE")
    return record.model_copy(update={"rows": tuple(_moved(row, folder) for row in record.rows)})


def _moved(row: MeasuredNetwork, folder: Path) -> MeasuredNetwork:
    """With the file where it is now: the run may have been moved."""
    artifact = row.latency.artifact
    here = folder.joinpath(*Path(artifact.path).parts[-3:])  # the point's folder, the stage's, the file
    if not here.exists():
        return row
    latency = row.latency.model_copy(update={"artifact": artifact.model_copy(update={"path": str(here)})})
    return row.model_copy(update={"latency": latency})


def _tried(directory: Path) -> tuple[Tried, ...]:
    path = directory / "prune" / CONFIRMED
    if not path.exists():
        return ()
    return read(path, ConfirmedFile, remedy="make it again: python -m compress prune --force").tried


def _sensitivity(directory: Path) -> SensitivityFile | None:
    path = directory / "sensitivity" / "sensitivity.json"
    if not path.exists():
        return None
    again = f"make it again: python -m compress sensitivity --set run.dir={directory}"
    return read(path, SensitivityFile, remedy=again)


def _stale(directory: Path, networks: Sequence[MeasuredNetwork], plan: WidthPlan | None) -> Iterator[str]:
    for network in networks:
        measured = network.latency.artifact
        path = Path(measured.path)
        if PARETO not in path.parts[-4:-3]:  # in the folder of a point
            path = directory.joinpath(*path.parts[-2:])  # the run may have been moved
        if path.exists() and engine_sha256(path) != measured.sha256:
            yield f"{network.name}: {path.parent.name}/{path.name} has changed since it was measured"
    if plan is None and (directory / "prune" / PLAN).exists():
        yield "prune has run since the export: its new plan is left out, because the measured networks have the old one"
