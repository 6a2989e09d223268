"""``python -m benchmarks.show FILE.json``: print the tables of a result file."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.cli import File, run
from compress.commands import command_line
from compress.console import Console


def show(file: File, /) -> int:
    """Print the tables of a result file, as the command that wrote it printed them.

    Exit code: 0, 1 the file is damaged, 2 the file is of a sort that has no table.

    Args:
        file: A JSON file of latency, accuracy, compare, plan-latency, summary, pareto or latency-table, or a plan.json.
    """
    from benchmarks.reporting.shown import show_file

    show_file(file, Console())
    return 0


app = command_line("python -m benchmarks.show")
app.default(show)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``show``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
