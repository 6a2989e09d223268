"""``python -m benchmarks.summary --run runs/NAME``: measure a run's networks before and after compression."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from benchmarks.cli import INVALID, Configured, Fast, Images, RunFolder, run
from compress.commands import CONFIGURATION, command_line
from compress.console import Console


def summary(
    *,
    directory: RunFolder = None,
    configured: Configured = Configured(),
    data: Annotated[Images | None, Parameter(group=CONFIGURATION)] = None,
    fast: Fast = False,
) -> int:
    """Measure accuracy and latency of a run's networks, before and after compression, in one table.

    The dense and the pruned FP32 network (in ONNX Runtime) and the INT8 engines that were built are evaluated on the
    same images and timed in one interleaved run. Of a network without classes the outputs are compared with those of
    the dense network (SQNR and cosine). If no engine was built that runs here, the exported INT8 file is
    measured instead. If layers were left in float, the file without float layers is measured too: the difference shows
    what these layers cost in latency and gain in accuracy.

    More tables follow: the latency that pruning predicted, the channels that it removed, and the share of the machine's
    peak that each network reaches.

    Exit code: 0, 1 error, 2 usage, 4 a measurement is invalid, 5 engine absent.

    Args:
        data: Evaluation images, instead of the configuration's [data].
    """
    from benchmarks.evaluation.summary import split_of, summarize, title, write
    from benchmarks.reporting.outcome import sections
    from benchmarks.reporting.rows import remarks, table
    from benchmarks.results.tables import show
    from benchmarks.timing.presets import PRESETS
    from compress.progress import Terminal
    from compress.run import Run

    config = configured.load()
    progress, console = Terminal(), Console()
    stages = Run(directory or config.run.dir, progress=progress)
    preset = PRESETS["fast" if fast else "normal"]
    settings = replace(preset, threads=config.target.threads, batch=config.target.batch)
    rows = summarize(stages, split_of(stages, data, config), settings, progress=progress)
    write(stages, rows)
    show(console, title(rows), *table(rows))
    for section in sections(stages, rows):
        console.print()
        section.show(console)
    console.print()
    for note in remarks(rows):
        console.print(note, soft_wrap=True)
    console.print(f"written: {stages.directory / 'summary.md'}, summary.json", soft_wrap=True)
    return 0 if all(row.valid for row in rows) else INVALID


app = command_line("python -m benchmarks.summary")
app.default(summary)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``summary``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
