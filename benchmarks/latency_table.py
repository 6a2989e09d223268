"""``python -m benchmarks.latency_table --config FILE``: latencies of a network's pieces, on the INT8 engine that ships.

Pieces of the exported INT8 file are timed at many widths, and whole networks of random widths with them; pruning to a
latency reads the table. Asked again, it measures only what is missing.

Where the engine is on another machine: ``--emit-kit DIR`` writes the pieces and a script that times them there, and
``--import-kit DIR`` makes the table of what it has measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.profiling import kit
from benchmarks.profiling.kit import FAST, NORMAL, Effort
from benchmarks.profiling.survey import Piece, Survey, check_measurable
from benchmarks.profiling.table import Timing, make_table, timings, with_steps
from benchmarks.results.tables import show
from compress.commands import run_command
from compress.config import Config, TargetConfig, load_config
from compress.console import Console
from compress.engines.base import backend, check_machine
from compress.errors import BackendAbsent, ConfigError
from compress.models.model import load_model
from compress.progress import Progress, Terminal
from compress.prune.latency.machine import here
from compress.prune.latency.predictor import LatencyModel
from compress.prune.latency.table import Kind, LatencyTable, Place
from compress.run import Run

TABLE = "latency_table.json"
FITTED, HELD_OUT = 12, 12  # whole networks
_CHUNK = 64  # files that lie on the disk at once


def profile(
    survey: Survey, target: TargetConfig, place: Place, folder: Path, effort: Effort, progress: Progress
) -> LatencyTable:
    """Measure on this machine.

    First the ladders, which tell the steps in width that the kernels take; then widths on these steps, and networks.

    Args:
        folder: where timings are kept, row by row; asked again with the same folder, what is there is not measured.

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

    def steps() -> Iterator[None]:
        for start in range(0, len(waiting), _CHUNK):
            chunk = waiting[start : start + _CHUNK]
            kit.write_files(folder, [reference, *chunk], survey.build)
            kit.write_manifest(folder, target, [reference, *chunk], survey.weights, effort, {})
            seen = 0
            try:
                for count in kit.run_guest(folder):
                    yield from [None] * (count - seen)
                    seen = count
            finally:
                for file in folder.glob("*.onnx"):
                    file.unlink()

    if waiting:
        folder.mkdir(parents=True, exist_ok=True)
        for _ in progress.track(steps(), what, total=len(waiting)):
            pass
    return timings(kit.results(folder))


def reference_piece(survey: Survey) -> Piece:
    """What is timed beside everything else: the dense segment in the middle of the network, on its own."""
    names = list(survey.kinds)
    name = names[len(names) // 2]
    return Piece("reference", "segment", name, {})


def emit_kit(survey: Survey, target: TargetConfig, folder: Path, effort: Effort, progress: Progress) -> None:
    """Write a kit. It cannot wait for the ladders' answers: its widths are multiples of a sixteenth of each group's.

    Raises:
        ConfigError: the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty", remedy="give a new folder to --emit-kit")
    kinds = list(survey.kinds.values())
    pieces = [*survey.ladders(), *survey.ends(), *survey.design(kinds), *survey.networks(kinds, FITTED, HELD_OUT)]
    pieces = list({piece.name: piece for piece in pieces}.values())
    reference = reference_piece(survey)
    kit.write_files(folder, progress.track([reference, *pieces], "writing", len(pieces) + 1), survey.build)
    described = kit.describe(survey, target)
    kit.emit(folder, target, [reference, *pieces], survey.weights, effort, described)
    size = sum(file.stat().st_size for file in folder.iterdir())
    progress.note(f"{len(pieces)} files, {size / 1e6:.0f} MB: {folder}; {kit.README} says what to do with them")


def import_kit(folder: Path, target: TargetConfig) -> LatencyTable:
    """The table of what a kit has measured on the device.

    Raises:
        ConfigError: no kit, one for another target, or one that has not measured everything.
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
    place = Place(target.name, target.engine, threads=manifest.threads, batch=target.batch, **asdict(rows[0].place))
    parts = (manifest.network, place, manifest.groups, kinds, manifest.segments, manifest.pieces, times)
    return make_table(*parts, imported=True)


def summarize(table: LatencyTable, path: Path, console: Console) -> None:
    """What was found, on the terminal."""
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


def _kind_row(table: LatencyTable, kind: Kind) -> list[str]:
    names = [member.name for member in table.segments if member.kind == kind.name]
    rows = [row for row in table.rows if row.kind == kind.name]
    dense = next((f"{row.ms:.3f}" for row in rows if row.units == kind.units), "")
    widths = ", ".join(f"{units} ({step})" for units, step in zip(kind.units, kind.step, strict=True))
    return [", ".join(names), widths, dense, str(len(rows))]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.latency_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--config", type=Path, metavar="FILE", help="TOML configuration; default: all defaults")
    p.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    p.add_argument("--run", type=Path, metavar="DIR", help="the run's folder; default: run.dir")
    p.add_argument("--table", type=Path, metavar="FILE", help=f"where the table goes; default: DIR/{TABLE}")
    p.add_argument("--fast", action="store_true", help="time each piece for a tenth as long: for a first look")
    where = p.add_mutually_exclusive_group()
    where.add_argument("--emit-kit", type=Path, metavar="DIR", help="write a kit for another machine; measure nothing")
    where.add_argument("--import-kit", type=Path, metavar="DIR", help="make the table of what a kit has measured")
    return p


def _command(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    config = load_config(args.config, args.overrides)
    directory = args.run or config.run.dir
    path = args.table or config.prune.table or directory / TABLE
    effort = FAST if args.fast else NORMAL
    console, progress = Console(), Terminal()
    if args.import_kit is not None:
        table = import_kit(args.import_kit, config.target)
    else:
        place = None if args.emit_kit is not None else _place(config.target)
        survey = _survey(config, directory, progress)
        if place is None:
            emit_kit(survey, config.target, args.emit_kit, effort, progress)
            return 0
        if _imported(path):
            raise ConfigError(
                f"{path} was imported from a kit, and this would replace it by this machine's",
                remedy="delete it, or name another file with --table; prune.table says which one is used",
            )
        key = _key(survey, place, effort)
        table = profile(survey, config.target, place, directory / "latency" / key, effort, progress)
    table.write(path)
    summarize(table, path, console)
    return 0


def _imported(path: Path) -> bool:
    """Whether there is a table of another machine's; one that cannot be read is in nobody's way."""
    try:
        return path.is_file() and LatencyTable.read(path).imported
    except ConfigError:
        return False


def _key(survey: Survey, place: Place, effort: Effort) -> str:
    """The folder of timings that go together: one for each network, place and effort."""
    parts = json.dumps([survey.network, asdict(place), asdict(effort)], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def _survey(config: Config, directory: Path, progress: Progress) -> Survey:
    model = load_model(Run(directory).need("baseline"), config.model.arch)
    progress.note(f"quantizing and exporting {model.arch} for {config.target.name} once")
    survey = Survey(model.net, model.preprocess, config.target)
    check_measurable(survey)
    return survey


def _place(target: TargetConfig) -> Place:
    """This machine.

    Raises:
        BackendAbsent: the target's engine does not run here.
    """
    remedy = "write a kit for the device with --emit-kit DIR"
    try:
        backend(target.engine).require(target.device)
        check_machine(target.name)
    except BackendAbsent as error:
        raise BackendAbsent(error.message, remedy=f"{remedy}; or {error.remedy}") from None
    place = here(target)
    assert place is not None
    if target.engine == "onnxruntime" and target.device != "cpu":
        raise ConfigError("ONNX Runtime is profiled on the CPU only", remedy="--set target.device=cpu")
    return place


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 error, 2 usage, 5 backend absent."""
    return run_command(lambda: _command(argv))


if __name__ == "__main__":
    sys.exit(main())
