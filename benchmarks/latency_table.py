"""``python -m benchmarks.latency_table --config FILE``: measure the latency table that pruning reads."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from cyclopts import Group, Parameter
from cyclopts.validators import mutually_exclusive

from benchmarks.cli import OUTPUT, Configured, Fast, File, Folder, RunFolder, run
from compress.commands import command_line
from compress.console import Console
from compress.errors import ConfigError

if TYPE_CHECKING:
    from benchmarks.profiling.kit import Effort
    from compress.config import Config
    from compress.progress import Progress
    from compress.prune.latency.table import Machine

KIT = Group("On another machine", sort_key=4, validator=mutually_exclusive)


def latency_table(
    *,
    directory: RunFolder = None,
    configured: Configured = Configured(),
    fast: Fast = False,
    emit_kit: Annotated[Folder | None, Parameter(group=KIT)] = None,
    import_kit: Annotated[Folder | None, Parameter(group=KIT)] = None,
    table: Annotated[File | None, Parameter(group=OUTPUT)] = None,
) -> int:
    """Measure the latency table that pruning reads: pieces of the network at many widths, on the target's INT8 engine.

    The pieces are cut out of the exported INT8 file. Whole networks of random widths are timed with them, to fit and
    check the model. A second run measures only what is missing. With prune.sizes there is a table for each input size,
    in RUN/sizes/.

    If the engine is on another machine, --emit-kit DIR writes the pieces and a script that times them there, and
    --import-kit DIR makes the table from the script's results. With prune.sizes DIR has a kit for each input size.

    Exit code: 0, 1 error, 2 usage, 5 engine absent.

    Args:
        fast: Time each piece for a tenth of the usual time: for a first look.
        emit_kit: Write a kit for another machine; measure nothing.
        import_kit: Make the table from the results of a kit.
        table: The table file to write; default: latency_table.json in the run's folder.
    """
    from benchmarks.profiling import measure
    from compress.progress import Terminal

    config = configured.load()
    directory = directory or config.run.dir
    path = table or config.prune.table or directory / measure.TABLE
    effort = measure.FAST if fast else measure.NORMAL
    console, progress = Console(), Terminal()
    if import_kit is not None:
        networks = _networks(config, directory, path, progress)
        tables = {one.table: measure.import_kit(import_kit / one.kit, config.target) for one in networks}
        for file, found in tables.items():  # once all of them are known to be whole
            found.write(file)
            measure.summarize(found, file, console)
    elif emit_kit is not None:
        measure.check_kit(emit_kit, config.target)
        networks = _networks(config, directory, path, progress)
        surveys = {one.kit: measure.survey_of(config, one.directory, progress) for one in networks}
        measure.emit_kits(surveys, config.target, emit_kit, effort, progress)
    else:
        place = measure.this_machine(config.target)  # an engine that is absent is told before other sizes are made
        for one in _networks(config, directory, path, progress):
            _measure(config, place, one.directory, one.table, effort, progress, console)
    return 0


class _Network(NamedTuple):
    """A network that has a latency table: its run's folder, the table's file, and the name of its kit among others."""

    directory: Path
    table: Path
    kit: str


def _networks(config: Config, directory: Path, table: Path, progress: Progress) -> list[_Network]:
    """The networks of all input sizes; the run's own comes last: where its table is, all are."""
    from benchmarks.profiling.measure import TABLE
    from compress.models.model import describe_model
    from compress.prune.stage import resized
    from compress.run import Run

    run = Run(directory, progress=progress)
    # Of another folder than the configuration's, the table of that one network is asked for.
    sizes = config.prune.sizes if directory == config.run.dir else ()
    runs = {size: resized(config, run, size).directory for size in sizes}
    others = [_Network(at, at / TABLE, f"{size}px") for size, at in runs.items() if at != directory]
    if not others:
        return [_Network(directory, table, "")]
    own = describe_model(run.need("baseline")).preprocess.sides[0]
    return [*others, _Network(directory, table, f"{own}px")]


def _measure(
    config: Config,
    place: Machine,
    directory: Path,
    path: Path,
    effort: Effort,
    progress: Progress,
    console: Console,
) -> None:
    """Measure the table of a run's network, and write it."""
    from benchmarks.profiling import measure

    survey = measure.survey_of(config, directory, progress)
    if measure.imported(path):
        raise ConfigError(
            f"{path} was imported from a kit; this command would overwrite it with a table of this machine",
            remedy="delete it, or write another file with --table; prune.table says which one pruning reads",
        )
    folder = directory / "latency" / measure.key(survey, place, effort)
    found = measure.profile(survey, config.target, place, folder, effort, progress)
    found.write(path)
    measure.summarize(found, path, console)


app = command_line("python -m benchmarks.latency_table")
app.default(latency_table)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``latency_table``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
