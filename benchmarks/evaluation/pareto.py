"""Make the networks of several latency budgets, measure them in one run, and write a table and a figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from benchmarks.evaluation.images import image_pools, images_of_run
from benchmarks.evaluation.quality import qualities
from benchmarks.reporting import figures
from benchmarks.reporting.choices import which
from benchmarks.reporting.outcome import PARETO, error, measured_where
from benchmarks.reporting.page import front_html
from benchmarks.reporting.rows import metadata_of, quality, quality_header, remarks, sides
from benchmarks.results.accuracy import AccuracyResult
from benchmarks.results.fidelity import FidelityResult
from benchmarks.results.networks import MeasuredNetwork, ParetoFile
from benchmarks.results.tables import interval, literal, markdown, speedup
from benchmarks.timing.run import measure
from benchmarks.timing.worker import Settings
from calibration.datasets import Split
from compress.config import Config, PruneConfig
from compress.data import open_data
from compress.engines.base import backend
from compress.engines.stage import build
from compress.errors import BackendAbsent, BudgetError, ConfigError, DataError
from compress.export.stage import export
from compress.files import write_atomic
from compress.graph.plan import WidthPlan
from compress.models.model import describe_model
from compress.progress import SILENT, Progress
from compress.prune.latency.table import LatencyTable, Machine
from compress.prune.stage import PLAN, TABLE, prune
from compress.quantize.stage import quantize
from compress.registries import BACKENDS
from compress.run import Run
from compress.train.stage import finetune

_SHARED = ("baseline", "losses", "calibrations")
TAKE = (
    "The folders of these networks, beside this file, are whole runs: `build/` has the engine, and `report` takes them "
    "as it takes any other run."
)


@dataclass(frozen=True)
class Point:
    """One budget, at the best input size or at a given one.

    Attributes:
        label: the budget as the user wrote it, ``50%`` or ``4.0 ms``, and the input size where it is given.
        name: name of its folder.
        config: the run's configuration, with this budget and this folder.
        size: the input size that is given, in pixels; None: ``prune`` chooses.
    """

    label: str
    name: str
    config: Config
    size: int | None = None


class Pruned(NamedTuple):
    """A point that was pruned."""

    point: Point
    run: Run
    plan: WidthPlan


@dataclass(frozen=True)
class Made:
    """A network that is measured.

    Attributes:
        name: in the table.
        predicted: ms by the latency table; None for a float network.
        place: the machine that the table was measured on; None for a float network.
    """

    name: str
    file: Path
    predicted: float | None = None
    place: Machine | None = None


def points_of(config: Config, budgets: Sequence[str], *, each_size: bool = False) -> list[Point]:
    """The configurations of the budgets, largest first, shares before ms; each replaces all budgets of ``config``.

    Args:
        each_size: a point for every input size of ``prune.sizes``, instead of the size that ``prune`` chooses.

    Raises:
        ConfigError: one is not a latency budget, or two are the same, or there are no sizes.
    """
    if each_size and not config.prune.sizes:
        raise ConfigError(
            "--each-size needs input sizes, and prune.sizes is not set", remedy="--set prune.sizes=[224,192,160]"
        )
    # Each input size has a table of its own, so that none can be named.
    table = None if config.prune.sizes else config.prune.table or config.run.dir / TABLE
    none = dict.fromkeys(("macs", "params", "ratio"))
    found: dict[str, tuple[tuple[bool, float], Point]] = {}
    for text in budgets:
        changes = {**config.prune.model_dump(), **none, "latency": text, "table": table}
        try:
            settings = PruneConfig.model_validate(changes)
        except ValidationError as problem:
            raise ConfigError(f"--at {text}: {problem.errors()[0]['msg'].removeprefix('Value error, ')}") from None
        [budget] = settings.budgets()
        size = budget.fraction if budget.fraction is not None else budget.limit or 0.0
        name = f"{100 * size:g}pct" if budget.fraction is not None else f"{size:g}ms"
        if name in found:
            raise ConfigError(f"--at names {text} twice")
        found[name] = (budget.fraction is not None, size), _point(config, settings, text, name)
    points = [point for _, point in sorted(found.values(), key=lambda pair: pair[0], reverse=True)]
    if not each_size:
        return points
    sizes = sorted(config.prune.sizes, reverse=True)
    return [_at_size(config, point, pixels) for point in points for pixels in sizes]


def _point(config: Config, settings: PruneConfig, label: str, name: str, size: int | None = None) -> Point:
    run = config.run.model_copy(update={"dir": config.run.dir / PARETO / name})
    return Point(label, name, config.model_copy(update={"run": run, "prune": settings}), size)


def _at_size(config: Config, point: Point, size: int) -> Point:
    settings = point.config.prune.model_copy(update={"sizes": (size,)})
    return _point(config, settings, f"{point.label} at {size} px", f"{point.name}-{size}px", size)


def images_of(config: Config) -> Split:
    """The evaluation images; for a backbone, which needs no labels, any images of the run.

    Raises:
        PipelineError: stage ``baseline`` has not run.
        DataError: there are none, or they cannot be read.
    """
    split = images_of_run(config, classes=bool(describe_model(Run(config.run.dir).need("baseline")).classes))
    if split is None:
        raise DataError("there are no images to measure accuracy on", remedy="set data.eval")
    return split


def make(config: Config, points: Sequence[Point], progress: Progress = SILENT) -> tuple[list[Made], list[str]]:
    """Run the stages for every point and for the dense network, unless they are up to date.

    All points are pruned before the first is fine-tuned, the smallest budget first: one that is too small fails early.
    Of points at a given size those are left out whose budget the size cannot meet, and those that are the same network
    as another point.

    Returns:
        The networks to measure, and of each point that is left out why.

    Raises:
        PipelineError: the error of a stage; see ``prune``, ``finetune``, ``quantize`` and ``export``.
    """
    parent = Run(config.run.dir, progress=progress)
    labels = config.finetune.labels and bool(describe_model(parent.need("baseline")).classes)
    place = LatencyTable.read(config.prune.table or parent.directory / TABLE).place  # says how to measure one
    if config.finetune.epochs and labels and open_data(config.data, config.run.seed).train is None:
        raise DataError(
            "fine-tuning needs labelled images, but data.train is not set",
            remedy="set data.train, or --set finetune.labels=false, or --set finetune.epochs=0",
        )
    pruned, left_out = _pruned(parent, points, progress, bool(config.prune.sizes))
    dense = _within(parent, "dense", progress)
    progress.note("the dense network")
    dense_int8 = finish(config, dense, "baseline")
    dense_fp32 = _float_file(dense, config, "dense_fp32")
    made = [
        Made("dense FP32", dense_fp32),
        Made("dense INT8", dense_int8, _predicted(pruned[0].plan)[0], place),
    ]
    for number, (point, run, plan) in enumerate(pruned, start=1):
        progress.note(f"fine-tuning, quantizing and exporting {point.label}: {number} of {len(pruned)}")
        finetune(point.config, run)
        int8 = finish(point.config, run, "finetune")
        made.append(Made(f"{point.label} INT8", int8, _predicted(plan)[1], place))
        if int8.suffix == dense_fp32.suffix:  # else it would be timed in another engine than its INT8 twin
            made.append(Made(f"{point.label} FP32", _float_file(run, config, "fp32")))
    return made, left_out


def _pruned(parent: Run, points: Sequence[Point], progress: Progress, sizes: bool) -> tuple[list[Pruned], list[str]]:
    """The points that were pruned, and of those that are left out why."""
    found: list[Pruned] = []
    left_out: list[str] = []
    refused: BudgetError | None = None
    for number, point in enumerate(reversed(points), start=1):
        progress.note(f"pruning to {point.label}: {number} of {len(points)}")
        run = _within(parent, point.name, progress, sizes)
        try:
            plan = WidthPlan.read(prune(point.config, run) / PLAN)
        except BudgetError as error:
            if point.size is None:
                raise
            refused, why = error, error.message
        else:
            same = [one.point.label for one in found if (one.point.size, one.plan) == (point.size, plan)]
            if point.size is None or not same:
                found.insert(0, Pruned(point, run, plan))
                continue
            why = f"the same network as {same[0]}"
        left_out.insert(0, f"{point.label} is left out: {why}")
        progress.note(f"  {left_out[0]}")
    if refused is not None and not found:
        raise refused
    return found, left_out


def _float_file(run: Run, config: Config, suffix: str) -> Path:
    return run.folder("export") / f"{config.name}_{suffix}.onnx"


def _within(parent: Run, name: str, progress: Progress, sizes: bool = False) -> Run:
    """A run in a folder of the parent's, with links to the parent's baseline, losses and calibrations.

    Args:
        sizes: also to what it has for other input sizes, and to its own latency table.
    """
    run = Run(parent.directory / PARETO / name, progress=progress)
    run.directory.mkdir(parents=True, exist_ok=True)
    if sizes and not (link := run.directory / TABLE).is_symlink():
        link.symlink_to(Path("..") / ".." / TABLE)
    for stage in (*_SHARED, *(["sizes"] if sizes else [])):
        parent.folder(stage).mkdir(exist_ok=True)
        if not (link := run.folder(stage)).is_symlink():
            link.symlink_to(Path("..") / ".." / stage, target_is_directory=True)
    return run


def _predicted(plan: WidthPlan) -> tuple[float, float]:
    """Predicted latency in ms, before and after pruning."""
    assert plan.latency is not None  # every point has a latency budget
    return plan.latency


def finish(config: Config, run: Run, source: str) -> Path:
    """Quantize, export and build; return the exported file if the target's engine does not run here."""
    quantize(config, run, source=source)
    exported = export(config, run, source=source) / f"{config.name}_int8.onnx"
    try:
        built = build(config, run) / f"{config.name}_int8{BACKENDS[config.target.engine].suffix}"
        backend(config.target.engine).require(config.target.device)
    except BackendAbsent as absent:
        run.progress.note(f"the exported file is measured instead of the target's engine: {absent.message}")
        return exported
    return built


def evaluate(
    made: Sequence[Made], split: Split, settings: Settings, progress: Progress = SILENT
) -> list[MeasuredNetwork]:
    """Measure the accuracies, paired with the first network's, and the latencies in one interleaved run.

    Of a backbone, which has no classes, the outputs are compared with those of the first network.

    Raises:
        EngineError: see ``qualities`` and ``measure``.
    """
    found = qualities([one.file for one in made], split, threads=settings.threads, progress=progress)
    metadata = [metadata_of(one.file) for one in made]
    settings = dataclasses.replace(settings, images=image_pools(split, (about.preprocess for about in metadata)))
    latencies = measure([one.file for one in made], settings, progress=progress)
    return [
        MeasuredNetwork.of(one.name, about, accuracy, latency, one.predicted, near)
        for one, about, (accuracy, near), latency in zip(made, metadata, found, latencies, strict=True)
    ]


def header(rows: Sequence[MeasuredNetwork]) -> list[str]:
    """The columns of the table."""
    timed = ["predicted ms", "measured ms", "error %", "speed-up"]
    return ["network", "input", *timed, *quality_header(rows), "MACs M", "file MB"]


def cells(made: Made, row: MeasuredNetwork) -> list[str]:
    """The cells of a network's row; the error of the prediction is shown only on the machine of the latency table."""
    off = ""
    measured = row.latency.stats["latency_ms"].median
    compared = row.latency.comparison
    if made.predicted and made.place and measured_where(row, made.place):
        off = f"{100 * error(made.predicted, measured.value):+.1f}"
    return [
        row.label,
        sides(row),
        f"{made.predicted:.3f}" if made.predicted else "",
        interval(measured, 3),
        off,
        speedup(compared.ratio if compared else None),
        *quality(row),
        f"{row.macs / 1e6:.1f}",
        f"{row.bytes / 1e6:.2f}",
    ]


def write(folder: Path, made: Sequence[Made], rows: Sequence[MeasuredNetwork], left_out: Sequence[str] = ()) -> None:
    """``pareto.json`` (every result in full), ``pareto.md``, ``pareto.svg``, and ``pareto.html`` to choose from."""
    record = ParetoFile(title=title(rows), rows=tuple(rows), left_out=tuple(left_out))
    record.write(folder / "pareto.json")
    table = markdown(header(rows), [cells(*pair) for pair in zip(made, rows, strict=True)])
    parts = [f"# {literal(record.title)}\n\n{table}\n\n![front](pareto.svg)\n", which(rows).markdown(), f"{TAKE}\n"]
    if notes := [*left_out, *remarks(rows)]:
        parts.append("".join(f"- {literal(note)}\n" for note in notes))
    write_atomic(folder / "pareto.md", "\n".join(parts))
    write_atomic(folder / "pareto.html", front_html(folder.resolve().parent.name, record))
    write_atomic(folder / "pareto.svg", figures.svg(figures.pareto(record.title, rows)))


def title(rows: Sequence[MeasuredNetwork]) -> str:
    """What was measured on what, in one line."""
    latency, (measured, what) = rows[0].latency, _measured(rows)
    images = f"{measured.images} images, " if measured else ""
    return (
        f"{rows[0].arch}: {what} against latency; {images}batch {latency.scenario.batch}, "
        f"{latency.modes['threads']} thread(s), {latency.host.cpu}; 95% intervals"
    )


def _measured(rows: Sequence[MeasuredNetwork]) -> tuple[AccuracyResult | FidelityResult | None, str]:
    """What is known of the last network's outputs, and what it is called."""
    last = rows[-1]
    return (last.fidelity, "fidelity of the outputs") if last.fidelity else (last.accuracy, "accuracy")
