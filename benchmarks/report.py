"""``python -m benchmarks.report runs/NAME``: a run as one HTML page that needs no network, and as a model card.

It measures nothing: what the stages and ``benchmarks.summary`` have written is read, checked, drawn and explained. What
has no data is left out, and the page says which command would make it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reporting.page import html, model_card
from benchmarks.reporting.record import read_record
from compress.commands import run_command
from compress.console import Console
from compress.files import write_atomic

REPORT, CARD = "report.html", "model_card.md"


def write(directory: Path) -> None:
    """Write ``report.html`` and ``model_card.md`` into a run's folder; neither where one cannot be made.

    Raises:
        PipelineError: the folder is no run, was not measured, or has a damaged file.
    """
    record = read_record(directory)
    page, card = html(record), model_card(record)
    write_atomic(directory / REPORT, page)
    write_atomic(directory / CARD, card)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("run", type=Path, metavar="DIR", help="the run's folder, with a summary.json")
    return p


def _command(argv: Sequence[str] | None) -> int:
    directory = parser().parse_args(argv).run
    write(directory)
    Console().print(f"written: {directory / REPORT}, {CARD}", soft_wrap=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 error, 2 usage. A measurement that is INVALID is told on top of the page."""
    return run_command(lambda: _command(argv))


if __name__ == "__main__":
    sys.exit(main())
