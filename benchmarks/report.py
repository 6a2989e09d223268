"""``python -m benchmarks.report runs/NAME``: write a run's results as one HTML page and as a model card."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.cli import Folder, run
from compress.commands import command_line
from compress.console import Console


def report(directory: Folder, /) -> int:
    """Write a run's results as one HTML page, readable offline, and as a model card.

    The command measures nothing: it reads the files that the stages and summary have written. A part without data is
    left out, and the page names the command that would make it. An INVALID measurement is reported at the top.

    Exit code: 0, 1 error, 2 usage.

    Args:
        directory: The run's folder, with a summary.json.
    """
    from benchmarks.reporting.page import CARD, REPORT, write

    write(directory)
    Console().print(f"written: {directory / REPORT}, {CARD}", soft_wrap=True)
    return 0


app = command_line("python -m benchmarks.report")
app.default(report)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``report``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
