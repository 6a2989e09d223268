"""``python -m benchmarks.pareto --config FILE``: accuracy against latency, measured, at several budgets.

Each budget gets a folder in ``RUN/pareto/`` in which the stages prune, fine-tune, quantize and export run with it; the
baseline, the latency table, the losses and the calibrations are the run's own. All networks, the dense ones too, are
then timed in one interleaved run and evaluated on the same images. Asked again, only what is missing is made.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from benchmarks import plots
from benchmarks.accuracy import predict, result_of
from benchmarks.evaluation.images import evaluation_split, first_images
from benchmarks.latency import PRESETS, count
from benchmarks.reporting.outcome import error
from benchmarks.reporting.rows import Row, metadata_of, remarks
from benchmarks.results import tables
from benchmarks.results.tables import interval, literal, markdown, percent, show, speedup
from benchmarks.timing.run import measure
from benchmarks.timing.worker import Settings
from calibration.datasets import Split
from compress.commands import run_command
from compress.config import Config, PruneConfig, load_config
from compress.console import Console
from compress.data import open_data
from compress.engines.base import BACKENDS
from compress.engines.stage import build
from compress.errors import BackendAbsent, ConfigError, DataError
from compress.export.stage import export
from compress.files import write_atomic, write_json
from compress.progress import SILENT, Progress, Terminal
from compress.prune.allocation.plan import WidthPlan
from compress.prune.latency.table import LatencyTable
from compress.prune.stage import PLAN, TABLE, prune
from compress.quantize.stage import quantize
from compress.run import Run
from compress.train.stage import finetune

FOLDER = "pareto"
WIDEST, NARROWEST = 0.80, 0.35  # of the dense network's latency: the ends of the row that --points divides
_SHARED = ("baseline", "losses", "calibrations")
HEADER = [
    "network",
    "predicted ms",
    "measured ms",
    "error %",
    "speed-up",
    "top-1 %",
    "change, points",
    "MACs M",
    "file MB",
]


@dataclass(frozen=True)
class Point:
    """One budget.

    Attributes:
        budget: as it was written, ``50%`` or ``4.0 ms``.
        name: of its folder.
        config: the run's, with this budget in place of its own, and the folder.
    """

    budget: str
    name: str
    config: Config


@dataclass(frozen=True)
class Made:
    """A network that takes part in the measurement.

    Attributes:
        name: in the table.
        predicted: ms by the latency table; None for a float network.
    """

    name: str
    file: Path
    predicted: float | None


def points_of(config: Config, budgets: Sequence[str]) -> list[Point]:
    """The budgets as configurations, widest first; each replaces every budget of ``config``.

    Raises:
        ConfigError: one is not a latency budget, or two are the same.
    """
    table = config.prune.table or config.run.dir / TABLE
    none = dict.fromkeys(("macs", "params", "ratio"))
    found: dict[str, tuple[float, Point]] = {}
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
        run = config.run.model_copy(update={"dir": config.run.dir / FOLDER / name})
        found[name] = size, Point(text, name, config.model_copy(update={"run": run, "prune": settings}))
    return [point for _, point in sorted(found.values(), key=lambda pair: -pair[0])]


def make(config: Config, points: Sequence[Point], progress: Progress = SILENT) -> list[Made]:
    """Run the stages at every point and for the dense network; what is up to date is left as it is.

    All points are pruned before the first is fine-tuned, the narrowest first: what cannot be reached is told at once.

    Raises:
        PipelineError: what a stage raises; see ``prune``, ``finetune``, ``quantize`` and ``export``.
    """
    parent = Run(config.run.dir, progress=progress)
    parent.need("baseline")
    LatencyTable.read(config.prune.table or parent.directory / TABLE)  # says how to measure one
    if config.finetune.epochs and open_data(config).train is None:
        raise DataError(
            "fine-tuning needs labelled images, and data.train is not set",
            remedy="set data.train, or --set finetune.epochs=0",
        )
    runs = [_within(parent, point.name, progress) for point in points]
    plans: list[WidthPlan] = []
    for point, run in reversed(list(zip(points, runs, strict=True))):
        progress.note(f"pruning to {point.budget}: {len(plans) + 1} of {len(points)}")
        plans.insert(0, WidthPlan.read(prune(point.config, run) / PLAN))
    dense = _within(parent, "dense", progress)
    progress.note("the dense network")
    dense_int8 = _finish(config, dense, "baseline")
    dense_fp32 = dense.folder("export") / f"{config.name}_dense_fp32.onnx"
    made = [Made("dense FP32", dense_fp32, None), Made("dense INT8", dense_int8, _predicted(plans[0])[0])]
    for number, (point, run, plan) in enumerate(zip(points, runs, plans, strict=True), start=1):
        progress.note(f"fine-tuning, quantizing and exporting {point.budget}: {number} of {len(points)}")
        finetune(point.config, run)
        made.append(Made(f"{point.budget} INT8", _finish(point.config, run, "finetune"), _predicted(plan)[1]))
    return made


def _within(parent: Run, name: str, progress: Progress) -> Run:
    """A run in a folder of the parent's, which it shares baseline, losses and calibrations with by links."""
    run = Run(parent.directory / FOLDER / name, progress=progress)
    run.directory.mkdir(parents=True, exist_ok=True)
    for stage in _SHARED:
        parent.folder(stage).mkdir(exist_ok=True)
        if not (link := run.folder(stage)).is_symlink():
            link.symlink_to(Path("..") / ".." / stage, target_is_directory=True)
    return run


def _predicted(plan: WidthPlan) -> tuple[float, float]:
    """ms before and after."""
    assert plan.latency is not None  # every point has a latency budget
    return plan.latency


def _finish(config: Config, run: Run, source: str) -> Path:
    """Quantize, export, and build where the target's engine is here; else the exported file stands in for it."""
    quantize(config, run, source=source)
    exported = export(config, run, source=source) / f"{config.name}_int8.onnx"
    try:
        return build(config, run) / f"{config.name}_int8{BACKENDS[config.target.engine].suffix}"
    except BackendAbsent as absent:
        run.progress.note(f"measured as exported: {absent.message}")
        return exported


def evaluate(made: Sequence[Made], split: Split, settings: Settings, progress: Progress = SILENT) -> list[Row]:
    """Accuracy, paired with the first network's image by image, and latency in one interleaved run.

    Raises:
        EngineError: see ``predict`` and ``measure``.
    """
    found = [predict(one.file, split, threads=settings.threads, progress=progress) for one in made]
    metadata = [metadata_of(one.file) for one in made]
    settings = dataclasses.replace(settings, images=first_images(split, metadata[0].preprocess))
    latencies = measure([one.file for one in made], settings, progress=progress)
    return [
        Row(one.name, about, result_of(predictions, None if predictions is found[0] else found[0]), latency)
        for one, about, predictions, latency in zip(made, metadata, found, latencies, strict=True)
    ]


def cells(made: Made, row: Row) -> list[str]:
    """A network as a row of the table."""
    measured = row.latency.stats["latency_ms"].median
    accuracy, compared = row.accuracy, row.latency.comparison
    assert accuracy is not None
    return [
        made.name,
        f"{made.predicted:.3f}" if made.predicted else "",
        interval(measured, 3),
        f"{100 * error(made.predicted, measured.value):+.1f}" if made.predicted else "",
        speedup(compared.ratio if compared else None),
        percent(accuracy.top1.value),
        tables.points(accuracy.paired.difference) if accuracy.paired else "",
        f"{row.metadata.macs / 1e6:.1f}",
        f"{row.latency.artifact.bytes / 1e6:.2f}",
    ]


def write(folder: Path, made: Sequence[Made], rows: Sequence[Row]) -> None:
    """``pareto.json`` (every result in full), ``pareto.md`` and ``pareto.svg``."""
    pairs = list(zip(made, rows, strict=True))
    record = {
        "schema_version": 1,
        "title": title(rows),
        "rows": [{**row.record(), "predicted_ms": one.predicted} for one, row in pairs],
    }
    write_json(folder / "pareto.json", record)
    text = f"# {literal(title(rows))}\n\n{markdown(HEADER, [cells(*pair) for pair in pairs])}\n\n![front](pareto.svg)\n"
    notes = "".join(f"- {literal(note)}\n" for note in remarks(rows))
    write_atomic(folder / "pareto.md", f"{text}\n{notes}" if notes else text)
    write_atomic(folder / "pareto.svg", plots.svg(plots.pareto(title(rows), rows)))


def title(rows: Sequence[Row]) -> str:
    """What was measured on what, in one line."""
    latency, accuracy = rows[0].latency, rows[0].accuracy
    images = f"{accuracy.images} images, " if accuracy else ""
    return (
        f"{rows[0].metadata.arch}: accuracy against latency; {images}batch {latency.scenario.batch}, "
        f"{latency.modes['threads']} thread(s), {latency.host.cpu}; 95% intervals"
    )


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.pareto", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--config", type=Path, metavar="FILE", help="TOML configuration; default: all defaults")
    p.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one key"
    )
    which = p.add_mutually_exclusive_group()
    which.add_argument(
        "--points", type=count, default=4, metavar="N", help=f"budgets from {WIDEST:.0%} to {NARROWEST:.0%} (4)"
    )
    which.add_argument("--at", metavar="80%,4.0 ms", help="the budgets, of the dense INT8 network's latency or in ms")
    p.add_argument("--fast", action="store_true", help="1 s of samples a network")
    return p


def budgets(args: argparse.Namespace) -> list[str]:
    """Those of ``--at``, else ``--points`` of them evenly spaced.

    >>> budgets(parser().parse_args(["--points", "4"]))
    ['80%', '65%', '50%', '35%']
    """
    if args.at is not None:
        return [text.strip() for text in args.at.split(",")]
    step = (WIDEST - NARROWEST) / max(1, args.points - 1)
    return [f"{100 * (WIDEST - k * step):.3g}%" for k in range(args.points)]


def _command(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    config = load_config(args.config, args.overrides)
    progress = Terminal()
    points = points_of(config, budgets(args))
    split = evaluation_split(None, config)  # told before hours of fine-tuning
    made = make(config, points, progress)
    preset = PRESETS["fast" if args.fast else "normal"]
    settings = dataclasses.replace(preset, threads=config.target.threads, batch=config.target.batch)
    rows = evaluate(made, split, settings, progress)
    folder = config.run.dir / FOLDER
    write(folder, made, rows)
    console = Console()
    show(console, title(rows), HEADER, [cells(*pair) for pair in zip(made, rows, strict=True)])
    console.print()
    for note in remarks(rows):
        console.print(note, soft_wrap=True)
    console.print(f"written: {folder / 'pareto.md'}, pareto.json, pareto.svg", soft_wrap=True)
    return 0 if all(verdict.status == "VALID" for row in rows for verdict in row.verdicts) else 4


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 error, 2 usage, 4 a measurement is invalid."""
    return run_command(lambda: _command(argv))


if __name__ == "__main__":
    sys.exit(main())
