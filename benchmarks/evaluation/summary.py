"""Measure the networks of a run, before and after compression, and write one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evaluation.images import evaluation_split, image_pools, images_of_run
from benchmarks.evaluation.quality import Quality, qualities
from benchmarks.reporting.outcome import PARETO, plan_of, sections
from benchmarks.reporting.rows import metadata_of, remarks, table
from benchmarks.results.latency import LatencyResult
from benchmarks.results.networks import WHOLE, MeasuredNetwork, SummaryFile
from benchmarks.results.tables import literal, markdown
from benchmarks.timing.reference import reference_networks
from benchmarks.timing.run import measure
from benchmarks.timing.worker import Settings
from calibration.datasets import Split
from compress.config import Config
from compress.engines.base import backend
from compress.engines.sidecar import Sidecar, read_sidecar
from compress.errors import BackendAbsent, EngineError
from compress.files import MANIFEST, file_sha256, tree_sha256, write_atomic
from compress.progress import SILENT, Progress
from compress.registries import BACKENDS
from compress.run import Run, read_manifest


def networks(run: Run) -> dict[str, Path]:
    """The files of a run to compare, by their name in the table; the dense network first.

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
    return {
        "dense FP32": dense,
        **(_dense_int8(run, name) if pruned else {}),
        **({"pruned FP32": _only(export, f"{name}_fp32.onnx")} if pruned else {}),
        **_int8_engines(kind, int8, build),
        **({f"{kind} INT8, {WHOLE}": whole} if whole.exists() else {}),
    }


def _int8_engines(kind: str, exported: Path, build: Path) -> dict[str, Path]:
    """The engines that were built from an exported INT8 file and run here; if there are none, the file itself."""
    built = {
        f"{kind} INT8" if record.engine == "onnxruntime" else f"{kind} INT8 ({record.engine})": path
        for path, record in _built_from(exported, build).items()
        if _runs_here(record.engine)
    }
    return built or {f"{kind} INT8": exported}


def _elsewhere(run: Run) -> list[str]:
    """The engines that were built from the run's INT8 file and do not run here, in words."""
    build = run.folder("build")
    return [
        f"{path.name} was built for {record.device}, with {record.engine} {record.version}, and does not run on this "
        "machine: it is not in the table"
        for path, record in _built_from(_only(run.folder("export"), "*_int8.onnx"), build).items()
        if not _runs_here(record.engine)
    ]


def _dense_int8(run: Run, name: str) -> dict[str, Path]:
    """The dense INT8 network, which budgets are shares of, if ``benchmarks.pareto`` has made it from this baseline."""
    dense = Run(run.directory / PARETO / "dense")
    export = dense.folder("export")
    if not (export / MANIFEST).exists():
        return {}
    made, ours = read_manifest(export), read_manifest(run.folder("export"))
    same_target = made.settings.get("target") == ours.settings.get("target")
    if not same_target or tree_sha256(run.folder("baseline")) not in made.parents.values():
        return {}
    return _int8_engines("dense", export / f"{name}_int8.onnx", dense.folder("build"))


def summarize(
    run: Run, split: Split | None, settings: Settings, *, progress: Progress = SILENT
) -> list[MeasuredNetwork]:
    """Measure accuracy on ``split``, and latency in one interleaved run, of every network of a run.

    Of a backbone, which has no classes, the outputs are compared with those of the dense network. Without ``split``
    only latency is measured, on random inputs. An engine that was built and does not run here is told in the warnings
    of the INT8 network.

    Raises:
        EngineError: a file is missing, does not open, or fails; see ``predict`` and ``measure``.
    """
    files = networks(run)
    metadata = {name: metadata_of(path) for name, path in files.items()}
    found = [Quality()] * len(files)
    if split is not None:
        found = qualities(list(files.values()), split, threads=settings.threads, progress=progress)
        images = image_pools(split, (about.preprocess for about in metadata.values()))
        settings = dataclasses.replace(settings, images=images)
    int8 = next(m for m in metadata.values() if m.precision == "int8")
    with reference_networks(int8.target or None) as known:
        results = measure(list(files.values()), settings, references=known, progress=progress)
    shipped = [name for name, about in metadata.items() if about.precision == "int8" and not name.endswith(WHOLE)][-1]
    absent = {shipped: _elsewhere(run)}
    return [
        MeasuredNetwork.of(name, about, accuracy, _with_notes(latency, absent.get(name, [])), fidelity=near)
        for (name, about), (accuracy, near), latency in zip(metadata.items(), found, results, strict=True)
    ]


def _with_notes(latency: LatencyResult, notes: list[str]) -> LatencyResult:
    return latency.model_copy(update={"warnings": [*notes, *latency.warnings]})


def write(run: Run, rows: Sequence[MeasuredNetwork]) -> None:
    """Write ``summary.json`` (every result in full) and ``summary.md`` into the run's folder."""
    SummaryFile(title=title(rows), rows=tuple(rows), plan=plan_of(run)).write(run.directory / "summary.json")
    parts = [f"# {literal(title(rows))}\n\n{markdown(*table(rows))}\n"]
    parts += [section.markdown() for section in sections(run, rows)]
    if notes := remarks(rows):
        parts.append("".join(f"- {literal(note)}\n" for note in notes))
    write_atomic(run.directory / "summary.md", "\n".join(parts))


def title(rows: Sequence[MeasuredNetwork]) -> str:
    """What was measured on what, in one line."""
    latency, accuracy = rows[0].latency, rows[0].accuracy
    images = f"{accuracy.images} images; " if accuracy else ""
    return (
        f"{rows[0].arch}: {images}ONNX Runtime where no other is named, batch {latency.scenario.batch}, "
        f"{latency.modes['threads']} thread(s), {latency.host.cpu}; 95% intervals"
    )


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise EngineError(
            f"expected one {pattern} in {folder}, found {len(found)}", remedy="run `python -m compress export` again"
        )
    return found[0]


def _built_from(exported: Path, build: Path) -> dict[Path, Sidecar]:
    """The engines that were built from this export, not from an earlier one, with their sidecars."""
    found = {}
    for suffix in dict.fromkeys(known.suffix for known in BACKENDS.values()):
        path = build / f"{exported.stem}{suffix}"
        record = read_sidecar(path) if path.exists() else None
        if record is not None and record.parent_sha256 == file_sha256(exported):
            found[path] = record
    return found


def _runs_here(engine: str) -> bool:
    if engine not in BACKENDS:  # the user's own, which is not loaded now
        return False
    try:
        backend(engine).require(BACKENDS[engine].device)
    except BackendAbsent:
        return False
    return True


def split_of(run: Run, data: str | None, config: Config) -> Split | None:
    """The evaluation images; None if there are none. For a backbone, which needs no labels, any images of the run."""
    if data is not None:
        return evaluation_split(data, config)
    return images_of_run(config, classes=bool(metadata_of(networks(run)["dense FP32"]).classes))
