"""``python -m benchmarks.plots --run runs/NAME``: draw a run's results as SVG figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.cli import Configured, RunFolder, run
from compress.commands import command_line
from compress.console import Console


def plots(*, directory: RunFolder = None, configured: Configured = Configured()) -> int:
    """Draw a run's results as SVG figures in runs/NAME/plots/.

    front.svg: the predicted loss at every budget. losses.svg: the loss of each group at every width. removals.svg: the
    loss of removing each block. pareto.svg: measured accuracy against measured latency, if pareto has run.

    Exit code: 0, 1 error, 2 usage.
    """
    from benchmarks.reporting.figures import draw, svg
    from compress.files import write_atomic

    directory = directory or configured.load().run.dir
    folder = directory / "plots"
    figures = draw(directory)
    for name, figure in figures.items():
        write_atomic(folder / name, svg(figure))
    Console().print(f"written: {folder}: {', '.join(figures)}", soft_wrap=True)
    return 0


app = command_line("python -m benchmarks.plots")
app.default(plots)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``plots``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
