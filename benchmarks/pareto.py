"""``python -m benchmarks.pareto --config FILE``: compress to several latency budgets and measure the results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from cyclopts import Group, Parameter
from cyclopts.validators import mutually_exclusive

from benchmarks.cli import INVALID, Configured, Count, Fast, run
from compress.commands import command_line
from compress.console import Console

BUDGETS = Group("Budgets", sort_key=2)
ONE_WAY = Group("One way to give budgets", validator=mutually_exclusive, show=False)
WIDEST, NARROWEST = 0.80, 0.35  # shares of the dense network's latency: the first and the last of --points


def pareto(
    *,
    configured: Configured = Configured(),
    points: Annotated[Count, Parameter(group=(BUDGETS, ONE_WAY))] = 4,
    at: Annotated[str | None, Parameter(group=(BUDGETS, ONE_WAY), metavar="80%,4.0 ms")] = None,
    each_size: Annotated[bool, Parameter(group=BUDGETS)] = False,
    fast: Fast = False,
) -> int:
    """Compress to several latency budgets, measure each network in INT8 and in float, and show which one to take.

    For each budget the stages prune, finetune, quantize and export run in a folder of RUN/pareto/. They share the run's
    baseline, latency table, losses and calibrations. All networks, also the dense ones, are then timed in one
    interleaved run and evaluated on the same images. A second run makes only what is missing. RUN/pareto/pareto.html
    shows the networks that no other one beats, and how to take one of them.

    Exit code: 0, 1 error, 2 usage, 4 a measurement is invalid.

    Args:
        points: Number of budgets, evenly spaced from 80% to 35%.
        at: The budgets, as shares of the dense INT8 network's latency or in ms.
        each_size: Fine-tune and measure every budget at every input size of prune.sizes, instead of at the size that
            is best before fine-tuning.
    """
    from benchmarks.evaluation.pareto import cells, evaluate, header, images_of, make, points_of, title, write
    from benchmarks.reporting.choices import which
    from benchmarks.reporting.outcome import PARETO
    from benchmarks.reporting.rows import remarks
    from benchmarks.results.tables import show
    from benchmarks.timing.presets import PRESETS
    from compress.progress import Terminal

    config = configured.load()
    progress, console = Terminal(), Console()
    named = spaced(points) if at is None else [text.strip() for text in at.split(",")]
    budgets = points_of(config, named, each_size=each_size)
    split = images_of(config)  # fails before hours of fine-tuning
    made, left_out = make(config, budgets, progress)
    preset = PRESETS["fast" if fast else "normal"]
    settings = replace(preset, threads=config.target.threads, batch=config.target.batch)
    rows = evaluate(made, split, settings, progress)
    folder = config.run.dir / PARETO
    write(folder, made, rows, left_out)
    show(console, title(rows), header(rows), [cells(*pair) for pair in zip(made, rows, strict=True)])
    console.print()
    which(rows).show(console)
    console.print()
    for note in [*left_out, *remarks(rows)]:
        console.print(note, soft_wrap=True)
    console.print(f"written: {folder / 'pareto.html'}, pareto.md, pareto.json, pareto.svg", soft_wrap=True)
    return 0 if all(row.valid for row in rows) else INVALID


def spaced(points: int) -> list[str]:
    """Evenly spaced budgets.

    >>> spaced(4)
    ['80%', '65%', '50%', '35%']
    """
    step = (WIDEST - NARROWEST) / max(1, points - 1)
    return [f"{100 * (WIDEST - k * step):.3g}%" for k in range(points)]


app = command_line("python -m benchmarks.pareto")
app.default(pareto)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``pareto``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
