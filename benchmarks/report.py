"""``python -m benchmarks.report runs/NAME``: a run as one HTML page, and as a model card."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.cli import Folder, run
from compress.commands import command_line
from compress.console import Console


def report(directory: Folder, /) -> int:
    """A run as one HTML page that needs no network, and as a model card.

    It measures nothing: what the stages and summary have written is read, checked, drawn and explained. What has no
    data is left out, and the page says which command would make it. A measurement that is INVALID is told on top.

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
