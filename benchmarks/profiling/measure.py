"""Make the latency table of a network: measured on this machine, or on a device with a kit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.profiling import kit
from benchmarks.profiling.guest import ENGINES
from benchmarks.profiling.kit import FAST as FAST
from benchmarks.profiling.kit import NORMAL as NORMAL
from benchmarks.profiling.kit import Effort
from benchmarks.profiling.pieces import check_pieces, for_this_gpu, write_pieces
from benchmarks.profiling.survey import Piece, Survey, check_measurable
from benchmarks.profiling.table import Timing, make_table, timings, with_steps
from benchmarks.results.tables import show
from compress.config import Config, TargetConfig
from compress.console import Console
from compress.engines.base import backend, check_machine
from compress.errors import BackendAbsent, ConfigError
from compress.files import whole
from compress.models.model import load_model
from compress.progress import Progress
from compress.prune.latency.machine import here
from compress.prune.latency.predictor import LatencyModel
from compress.prune.latency.table import LatencyTable, Machine, SegmentKind
from compress.run import Run

TABLE = "latency_table.json"
FITTED, HELD_OUT = 12, 12  # whole networks
_CHUNK = 64  # files on the disk at a time


def profile(
    survey: Survey, target: TargetConfig, place: Machine, folder: Path, effort: Effort, progress: Progress
) -> LatencyTable:
    """Measure on this machine.

    First the ladders are measured, which show the width steps of the kernels; then widths that are multiples of these
    steps, and whole networks.

    Args:
        folder: folder of the timings, one row per piece; a piece that has a row there is not measured again.

    Raises:
        EngineError: the engine cannot run a piece.
    """
    kinds = list(survey.kinds.values())
    reference = reference_piece(survey)
    first = [*survey.ladders(), *survey.ends()]
    times = _measured(survey, target, reference, first, folder, effort, "kernel steps", progress)
    kinds = with_steps(kinds, first, times, survey.unit)
    second = [*survey.design(kinds), *survey.networks(kinds, FITTED, HELD_OUT)]
    pieces = list({piece.name: piece for piece in [*first, *second]}.values())
    times = _measured(survey, target, reference, pieces, folder, effort, "widths", progress)
    return make_table(survey.network, place, survey.groups, kinds, survey.members, pieces, times, imported=False)


def _measured(
    survey: Survey,
    target: TargetConfig,
    reference: Piece,
    pieces: Sequence[Piece],
    folder: Path,
    effort: Effort,
    what: str,
    progress: Progress,
) -> dict[str, Timing]:
    done = {row.name for row in kit.results(folder)}
    waiting = [piece for piece in pieces if piece.name not in done]

    here_only = for_this_gpu(target)

    def steps() -> Iterator[None]:
        for start in range(0, len(waiting), _CHUNK):
            chunk = waiting[start : start + _CHUNK]
            write_pieces(folder, [reference, *chunk], survey.build, here_only)
            kit.write_manifest(folder, kit.GuestManifest.of(here_only, [reference, *chunk], survey.weights, effort))
            seen = 0
            try:
                for count in kit.run_guest(folder):
                    yield from [None] * (count - seen)
                    seen = count
            finally:
                for file in folder.glob(f"*{ENGINES[target.engine].suffix}"):
                    file.unlink()

    if waiting:
        folder.mkdir(parents=True, exist_ok=True)
        for _ in progress.track(steps(), what, total=len(waiting)):
            pass
    return timings(kit.results(folder))


def reference_piece(survey: Survey) -> Piece:
    """The reference, which is timed in every round: the dense segment in the middle of the network."""
    names = list(survey.kinds)
    name = names[len(names) // 2]
    return Piece("reference", "segment", name, {})


def check_kit(folder: Path, target: TargetConfig) -> None:
    """Check that a kit can be written.

    Raises:
        ConfigError: the folder is not empty, or no script times the target's engine.
        BackendAbsent: what compiles the target's plans is not on this machine.
    """
    check_pieces(target)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} is not an empty folder", remedy="give a new folder to --emit-kit")


def emit_kits(
    surveys: Mapping[str, Survey], target: TargetConfig, folder: Path, effort: Effort, progress: Progress
) -> None:
    """Write a kit for each network, all of them or none.

    The steps are not known yet, so its widths are multiples of a sixteenth of each group's.

    Args:
        surveys: by the name of the kit's folder in ``folder``; ``""`` is ``folder`` itself.

    Raises:
        ConfigError, BackendAbsent: see ``check_kit``.
        EngineError: a plan cannot be compiled.
    """
    check_kit(folder, target)
    with whole(folder) as out:
        for name, survey in surveys.items():
            _emit(survey, target, out / name, effort, progress)
    for name in surveys:
        files = [file for file in (folder / name).iterdir() if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        progress.note(f"{len(files)} files, {size / 1e6:.0f} MB: {folder / name}; {kit.README} says how to run them")


def _emit(survey: Survey, target: TargetConfig, out: Path, effort: Effort, progress: Progress) -> None:
    out.mkdir(exist_ok=True)
    kinds = list(survey.kinds.values())
    pieces = [*survey.ladders(), *survey.ends(), *survey.design(kinds), *survey.networks(kinds, FITTED, HELD_OUT)]
    pieces = list({piece.name: piece for piece in pieces}.values())
    reference = reference_piece(survey)
    manifest = kit.KitManifest.of_kit(survey, target, [reference, *pieces], effort)
    what = "writing" if manifest.built is None else "building plans"
    write_pieces(out, progress.track([reference, *pieces], what, len(pieces) + 1), survey.build, target)
    kit.emit(out, manifest)


def import_kit(folder: Path, target: TargetConfig) -> LatencyTable:
    """Make the table from the results of a kit.

    Raises:
        ConfigError: the folder is not a kit, is for another target, or has no results for some files.
    """
    manifest = kit.read_manifest(folder)
    for name, asked in (("target", target.name), ("engine", target.engine), ("batch", target.batch)):
        if (made := getattr(manifest, name)) != asked:
            raise ConfigError(
                f"the kit {folder / kit.DESCRIBED} was made for {name} {made}, the configuration says {asked}",
                remedy=f"--set target.{'name' if name == 'target' else name}={made}",
            )
    rows = kit.results(folder)
    measured = {row.name for row in rows}
    missing = [piece.name for piece in manifest.pieces if piece.name not in measured]
    if missing or not rows:
        raise ConfigError(
            f"{folder / kit.RESULTS} lacks {len(missing)} of {len(manifest.pieces)} files, first '{missing[:1]}'",
            remedy=f"run {kit.SCRIPT} again on the device: it measures what is missing",
        )
    if any(row.place != rows[0].place for row in rows):
        raise ConfigError(
            f"{folder / kit.RESULTS} has rows of several devices or versions",
            remedy=f"delete it, and run {kit.SCRIPT} again on the device",
        )
    times = timings(rows)
    kinds = with_steps(manifest.kinds, manifest.pieces, times, manifest.unit)
    place = Machine(target.name, target.engine, threads=manifest.threads, batch=target.batch, **asdict(rows[0].place))
    parts = (manifest.network, place, manifest.groups, kinds, manifest.segments, manifest.pieces, times)
    return make_table(*parts, imported=True)


def summarize(table: LatencyTable, path: Path, console: Console) -> None:
    """Print the table and the error of its model."""
    place = table.place
    model = LatencyModel(table)
    body = [_kind_row(table, kind) for kind in table.kinds]
    title = f"{place.engine} {place.version}, {place.device}, {place.threads} thread(s), batch {place.batch}"
    show(console, title, ["segments", "units (steps of)", "dense ms", "rows"], body)
    console.print(f"dense network: {model.network_ms({}):.3f} ms = {model.offset:.3f} + {model.scale:.3f} x segments")
    console.print(
        f"error on {len(model.errors)} held-out networks: mean {model.mean_error:.1%}, max {model.max_error:.1%}"
    )
    console.print(f"table: {path}", soft_wrap=True)


def _kind_row(table: LatencyTable, kind: SegmentKind) -> list[str]:
    names = [member.name for member in table.segments if member.kind == kind.name]
    rows = [row for row in table.rows if row.kind == kind.name]
    dense = next((f"{row.ms:.3f}" for row in rows if row.units == kind.units), "")
    widths = ", ".join(f"{units} ({step})" for units, step in zip(kind.units, kind.step, strict=True))
    return [", ".join(names), widths, dense, str(len(rows))]


def imported(path: Path) -> bool:
    """Whether the file is a table that was imported from a kit; a damaged file counts as none."""
    try:
        return path.is_file() and LatencyTable.read(path).imported
    except ConfigError:
        return False


def key(survey: Survey, place: Machine, effort: Effort) -> str:
    """The name of the folder of timings: one for each network, machine and effort."""
    parts = json.dumps([survey.network, asdict(place), asdict(effort)], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def survey_of(config: Config, directory: Path, progress: Progress) -> Survey:
    """Choose the pieces of a run's network.

    Raises:
        PipelineError: stage ``baseline`` has not run.
    """
    model = load_model(Run(directory).need("baseline"), config.model.arch)
    progress.note(f"quantizing and exporting {model.arch} for {config.target.name} once")
    survey = Survey(model.net, model.preprocess, config.target)
    check_measurable(survey)
    return survey


def this_machine(target: TargetConfig) -> Machine:
    """This machine with the target's engine, as a latency table records it.

    Raises:
        BackendAbsent: the target's engine does not run here.
        ConfigError: the pieces of a table cannot be timed on that engine.
    """
    check_pieces(target)
    remedy = "write a kit for the device with --emit-kit DIR"
    try:
        backend(target.engine).require(target.device)
        check_machine(target.name)
    except BackendAbsent as error:
        raise BackendAbsent(error.message, remedy=f"{remedy}; or {error.remedy}") from None
    place = here(target)
    assert place is not None
    if target.engine == "onnxruntime" and target.device != "cpu":
        raise ConfigError(
            "a latency table for ONNX Runtime is measured on the CPU only", remedy="--set target.device=cpu"
        )
    return place
