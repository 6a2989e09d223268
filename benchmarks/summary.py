"""``python -m benchmarks.summary --run runs/NAME``: what a run has gained, before and after, in one table.

The dense FP32 network and the pruned one, both in ONNX Runtime, and the INT8 engines that were built are measured on
the same images and in one interleaved run. Where no engine was built that runs here, the exported INT8 file stands in.
Where layers were left in float, the file without any is measured too: what they cost in latency, and bring in accuracy.

Below it: what pruning had predicted, what it has taken out, and how near each network comes to the machine's peak.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy import predict, result_of
from benchmarks.evaluation.images import DATA_HELP, evaluation_split, first_images
from benchmarks.latency import PRESETS
from benchmarks.reporting.outcome import plan_of, sections
from benchmarks.reporting.rows import HEADER, Row, metadata_of, remarks
from benchmarks.results.schema import AccuracyResult
from benchmarks.results.tables import literal, markdown, show
from benchmarks.timing.reference import yardsticks
from benchmarks.timing.run import measure
from benchmarks.timing.worker import Settings
from calibration.datasets import Split
from compress.commands import run_command
from compress.config import Config, load_config
from compress.console import Console
from compress.data import open_data
from compress.engines.base import BACKENDS, backend
from compress.engines.sidecar import read_sidecar
from compress.errors import BackendAbsent, EngineError
from compress.files import file_sha256, write_atomic, write_json
from compress.progress import SILENT, Progress, Terminal
from compress.run import Run, read_manifest


def networks(run: Run) -> dict[str, Path]:
    """The files of a run that are compared, by their name in the table; the dense one first.

    Raises:
        PipelineError: stage ``export`` has not run.
        EngineError: a file is not there.
    """
    export, build = run.need("export"), run.folder("build")
    dense = _only(export, "*_dense_fp32.onnx")
    name = dense.name.removesuffix("_dense_fp32.onnx")
    int8 = _only(export, f"{name}_int8.onnx")
    whole = export / f"{name}_int8_all.onnx"
    pruned = read_manifest(export).settings.get("source") != "baseline"
    kind = "pruned" if pruned else "dense"
    built = {
        f"{kind} INT8" if engine == "onnxruntime" else f"{kind} INT8 ({engine})": path
        for engine, known in BACKENDS.items()
        if _built_from(int8, path := build / f"{name}_int8{known.suffix}") and _runs_here(engine)
    }
    return {
        "dense FP32": dense,
        **({"pruned FP32": _only(export, f"{name}_fp32.onnx")} if pruned else {}),
        **(built or {f"{kind} INT8": int8}),
        **({f"{kind} INT8, no layer in float": whole} if whole.exists() else {}),
    }


def summarize(run: Run, split: Split | None, settings: Settings, *, progress: Progress = SILENT) -> list[Row]:
    """Measure accuracy on ``split``, and latency in one interleaved run, of every network of a run.

    Without ``split`` (a backbone, or no labelled images) only latency is measured, on random inputs.

    Raises:
        EngineError: a file is missing, does not open, or fails; see ``predict`` and ``measure``.
    """
    files = networks(run)
    metadata = {name: metadata_of(path) for name, path in files.items()}
    accuracies: list[AccuracyResult | None] = [None] * len(files)
    if split is not None:
        found = [predict(path, split, threads=settings.threads, progress=progress) for path in files.values()]
        accuracies = [result_of(one, None if one is found[0] else found[0]) for one in found]
        images = first_images(split, metadata["dense FP32"].preprocess)
        settings = dataclasses.replace(settings, images=images)
    int8 = next(m for m in metadata.values() if m.precision == "int8")
    with yardsticks(int8.target or None) as known:
        results = measure(list(files.values()), settings, yardsticks=known, progress=progress)
    return [
        Row(name, found, accuracy, latency)
        for (name, found), accuracy, latency in zip(metadata.items(), accuracies, results, strict=True)
    ]


def write(run: Run, rows: Sequence[Row]) -> None:
    """Write ``summary.json`` (every result in full) and ``summary.md`` into the run's folder."""
    plan = plan_of(run)
    record = {
        "schema_version": 1,
        "title": title(rows),
        "rows": [row.record() for row in rows],
        "plan": plan.to_json() if plan else None,
    }
    write_json(run.directory / "summary.json", record)
    parts = [f"# {literal(title(rows))}\n\n{markdown(HEADER, [row.cells() for row in rows])}\n"]
    parts += [section.markdown() for section in sections(run, rows)]
    if notes := remarks(rows):
        parts.append("".join(f"- {literal(note)}\n" for note in notes))
    write_atomic(run.directory / "summary.md", "\n".join(parts))


def title(rows: Sequence[Row]) -> str:
    """What was measured on what, in one line."""
    latency, accuracy = rows[0].latency, rows[0].accuracy
    images = f"{accuracy.images} images; " if accuracy else ""
    return (
        f"{rows[0].metadata.arch}: {images}ONNX Runtime where no other is named, batch {latency.scenario.batch}, "
        f"{latency.modes['threads']} thread(s), {latency.host.cpu}; 95% intervals"
    )


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise EngineError(
            f"expected one {pattern} in {folder}, found {len(found)}", remedy="run `python -m compress export` again"
        )
    return found[0]


def _built_from(exported: Path, engine: Path) -> bool:
    """Whether ``engine`` is there and of this very export, not of an earlier one."""
    record = read_sidecar(engine) if engine.exists() else None
    return record is not None and record.parent_sha256 == file_sha256(exported)


def _runs_here(engine: str) -> bool:
    try:
        backend(engine).require("cuda" if engine == "tensorrt" else "cpu")
    except BackendAbsent:
        return False
    return True


def _split(run: Run, data: str | None, config: Config) -> Split | None:
    """The evaluation images; None where there are none, and for a backbone, which has no classes to be right about."""
    dense = networks(run)["dense FP32"]
    if not metadata_of(dense).classes or (data is None and open_data(config).eval is None):
        return None
    return evaluation_split(data, config)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.summary", description=__doc__)
    p.add_argument("--run", type=Path, metavar="DIR", help="the run's folder; default: the configuration's run.dir")
    p.add_argument("--config", type=Path, metavar="FILE", help="the configuration that the run was made with")
    p.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one key"
    )
    p.add_argument("--data", help=f"instead of the configuration's [data]: {DATA_HELP}")
    p.add_argument("--fast", action="store_true", help="1 s of samples a network")
    return p


def _command(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    config = load_config(args.config, args.overrides)
    progress = Terminal()
    run = Run(args.run or config.run.dir, progress=progress)
    preset = PRESETS["fast" if args.fast else "normal"]
    settings = dataclasses.replace(preset, threads=config.target.threads, batch=config.target.batch)
    rows = summarize(run, _split(run, args.data, config), settings, progress=progress)
    write(run, rows)
    console = Console()
    show(console, title(rows), HEADER, [row.cells() for row in rows])
    for section in sections(run, rows):
        console.print()
        show(console, section.title, section.header, section.rows)
    console.print()
    for note in remarks(rows):
        console.print(note, soft_wrap=True)
    console.print(f"written: {run.directory / 'summary.md'}, summary.json", soft_wrap=True)
    valid = all(verdict.status == "VALID" for row in rows for verdict in row.verdicts)
    return 0 if valid else 4


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 error, 2 usage, 4 a measurement is invalid, 5 backend absent."""
    return run_command(lambda: _command(argv))


if __name__ == "__main__":
    sys.exit(main())
