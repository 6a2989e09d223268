"""``python -m benchmarks.summary --run runs/NAME``: what a run has gained, before and after, in one table.

The dense FP32 network and the pruned one, both in ONNX Runtime, and the INT8 engines that were built are measured on
the same images and in one interleaved run. Where no engine was built that runs here, the exported INT8 file stands in.
Where layers were left in float, the file without any is measured too: what they cost in latency, and bring in accuracy.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.accuracy import predict, result_of
from benchmarks.images import DATA_HELP, evaluation_split, first_images
from benchmarks.latency import PRESETS
from benchmarks.schema import AccuracyResult, LatencyResult, Verdict
from benchmarks.tables import interval, markdown, percent, points, show, speedup
from benchmarks.timing import measure
from benchmarks.worker import Settings
from calibration.datasets import Split
from compress.cli import run_command
from compress.config import Config, load_config
from compress.data import open_data
from compress.engines.base import BACKENDS, backend, open_engine
from compress.engines.metadata import Metadata
from compress.engines.sidecar import read_sidecar
from compress.errors import BackendAbsent, EngineError
from compress.progress import SILENT, Progress, Terminal
from compress.run import MANIFEST, Run, file_sha256, read_json, write_atomic, write_json
from compress.targets import profile

HEADER = ["network", "top-1 %", "change, points", "params M", "MACs M", "file MB", "latency ms", "speed-up"]


@dataclass(frozen=True)
class Row:
    """One network of the summary: its name in the table, and what was found; a backbone has no accuracy."""

    name: str
    metadata: Metadata
    accuracy: AccuracyResult | None
    latency: LatencyResult

    def cells(self) -> list[str]:
        paired, compared = self.accuracy and self.accuracy.paired, self.latency.comparison
        return [
            self.name,
            percent(self.accuracy.top1.value) if self.accuracy else "",
            points(paired.difference) if paired else "",
            f"{self.metadata.params / 1e6:.3f}",
            f"{self.metadata.macs / 1e6:.1f}",
            f"{self.latency.artifact.bytes / 1e6:.2f}",
            interval(self.latency.stats["latency_ms"].median, 3),
            speedup(compared.ratio if compared else None),
        ]

    @property
    def verdicts(self) -> list[Verdict]:
        """Whether each of its measurements may be used."""
        return [result.verdict for result in (self.accuracy, self.latency) if result is not None]

    def record(self) -> dict[str, object]:
        """The row for ``summary.json``: plain numbers, and the full results that they come from."""
        return {
            "name": self.name,
            "params": self.metadata.params,
            "macs": self.metadata.macs,
            "bytes": self.latency.artifact.bytes,
            "top1": self.accuracy.top1.value if self.accuracy else None,
            "latency_ms": self.latency.stats["latency_ms"].median.value,
            "accuracy": self.accuracy.model_dump(mode="json") if self.accuracy else None,
            "latency": self.latency.model_dump(mode="json"),
        }


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
    pruned = read_json(export / MANIFEST)["settings"].get("source") != "baseline"
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
    metadata = {name: _metadata(path) for name, path in files.items()}
    accuracies: list[AccuracyResult | None] = [None] * len(files)
    if split is not None:
        found = [predict(path, split, threads=settings.threads, progress=progress) for path in files.values()]
        accuracies = [result_of(one, None if one is found[0] else found[0]) for one in found]
        images = first_images(split, metadata["dense FP32"].preprocess)
        settings = dataclasses.replace(settings, images=images)
    latencies = measure(list(files.values()), settings, progress=progress)
    return [
        Row(name, metadata[name], accuracy, latency)
        for name, accuracy, latency in zip(files, accuracies, latencies, strict=True)
    ]


def write(run: Run, rows: Sequence[Row]) -> None:
    """Write ``summary.json`` (every result in full) and ``summary.md`` into the run's folder."""
    record = {"schema_version": 1, "title": title(rows), "rows": [row.record() for row in rows]}
    write_json(run.directory / "summary.json", record)
    text = f"# {title(rows)}\n\n{markdown(HEADER, [row.cells() for row in rows])}\n"
    notes = "".join(f"- {note}\n" for note in remarks(rows))
    write_atomic(run.directory / "summary.md", f"{text}\n{notes}" if notes else text)


def title(rows: Sequence[Row]) -> str:
    """What was measured on what, in one line."""
    latency, accuracy = rows[0].latency, rows[0].accuracy
    images = f"{accuracy.images} images; " if accuracy else ""
    return (
        f"{rows[0].metadata.arch}: {images}ONNX Runtime where no other is named, batch {latency.scenario.batch}, "
        f"{latency.modes['threads']} thread(s), {latency.host.cpu}; 95% intervals"
    )


def remarks(rows: Sequence[Row]) -> list[str]:
    """Warnings and reasons of every result, and what was measured in another engine than its own; each once."""
    said = [
        f"{row.name}: {text}"
        for row in rows
        for text in [
            *_elsewhere(row.metadata.target, row.latency.backend.name),
            *(reason for verdict in row.verdicts for reason in verdict.reasons),
            *row.latency.warnings,
        ]
    ]
    return list(dict.fromkeys(said))


def _elsewhere(target: str, engine: str) -> Iterator[str]:
    """What to know of a file for ``target`` that ``engine`` ran on this machine, if its times are no target's."""
    if not target:
        return
    made_for, machine = profile(target), platform.machine()
    if engine not in made_for.engines:
        yield f"made for {made_for.engines[0]}, measured in {engine}: its latency here is not that of the target"
    elif made_for.machines and machine not in made_for.machines:
        yield f"made for {made_for.machines[0]}, measured on {machine}: its latency here is not that of the target"


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


def _metadata(path: Path) -> Metadata:
    with open_engine(path) as engine:
        if engine.metadata is None:
            raise EngineError(f"{path} carries no metadata", remedy="run `python -m compress export` again")
        return engine.metadata


def _split(run: Run, data: str | None, config: Config) -> Split | None:
    """The evaluation images; None where there are none, and for a backbone, which has no classes to be right about."""
    dense = networks(run)["dense FP32"]
    if not _metadata(dense).classes or (data is None and open_data(config).eval is None):
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
    console = Console(highlight=False)
    show(console, title(rows), HEADER, [row.cells() for row in rows])
    for note in remarks(rows):
        console.print(note, markup=False, soft_wrap=True)
    console.print(f"written: {run.directory / 'summary.md'}, summary.json", soft_wrap=True)
    valid = all(verdict.status == "VALID" for row in rows for verdict in row.verdicts)
    return 0 if valid else 4


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 error, 2 usage, 4 a measurement is invalid, 5 backend absent."""
    return run_command(lambda: _command(argv))


if __name__ == "__main__":
    sys.exit(main())
