"""``python -m benchmarks.latency_table --config FILE``: measure the latency table that pruning reads."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    in RUN/sizes/; a kit is for one size: --run RUN/sizes/192px.

    If the engine is on another machine, --emit-kit DIR writes the pieces and a script that times them there, and
    --import-kit DIR makes the table from the script's results.

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
        found = measure.import_kit(import_kit, config.target)
        found.write(path)
        measure.summarize(found, path, console)
    elif emit_kit is not None:
        measure.check_kit(emit_kit, config.target)
        survey = measure.survey_of(config, directory, progress)
        measure.emit_kit(survey, config.target, emit_kit, effort, progress)
    else:
        place = measure.this_machine(config.target)  # an engine that is absent is told before other sizes are made
        # Its own table comes last: where it is, all are.
        for folder, file in {**_other_sizes(config, directory, progress), directory: path}.items():
            _measure(config, place, folder, file, effort, progress, console)
    return 0


def _other_sizes(config: Config, directory: Path, progress: Progress) -> dict[Path, Path]:
    """The runs of the other input sizes of ``prune.sizes``, and the files of their tables."""
    from benchmarks.profiling.measure import TABLE
    from compress.prune.stage import resized
    from compress.run import Run

    if directory != config.run.dir:  # the table of one network was asked for
        return {}
    run = Run(directory, progress=progress)
    folders = [resized(config, run, size).directory for size in config.prune.sizes]
    return {folder: folder / TABLE for folder in folders if folder != directory}


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
