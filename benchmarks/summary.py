"""``python -m benchmarks.summary --run runs/NAME``: what a run has gained, before and after, in one table."""

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
    """What a run has gained, before and after, in one table.

    The dense FP32 network and the pruned one, both in ONNX Runtime, and the INT8 engines that were built are measured
    on the same images and in one interleaved run. Where no engine was built that runs here, the exported INT8 file
    stands in. Where layers were left in float, the file without any is measured too: what they cost in latency, and
    bring in accuracy.

    Below it: what pruning had predicted, what it has taken out, and how near each network comes to the machine's peak.

    Exit code: 0, 1 error, 2 usage, 4 a measurement is invalid, 5 engine absent.

    Args:
        data: In place of the configuration's [data].
    """
    from benchmarks.evaluation.summary import split_of, summarize, title, write
    from benchmarks.reporting.outcome import sections
    from benchmarks.reporting.rows import HEADER, cells, remarks
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
    show(console, title(rows), HEADER, list(map(cells, rows)))
    for section in sections(stages, rows):
        console.print()
        show(console, section.title, section.header, section.rows)
        if section.note:
            console.print(section.note, soft_wrap=True)
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
