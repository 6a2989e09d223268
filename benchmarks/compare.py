"""``python -m benchmarks.compare A.json B.json``: compare two runs of latency and say whether an engine is slower."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

from benchmarks.cli import AllowDifferent, File, JsonFile, Limits, TextFile, run, words
from compress.commands import command_line
from compress.console import Console


def compare(
    baseline: File,
    candidate: File,
    /,
    *,
    pair: Annotated[tuple[tuple[str, str], ...], Parameter(metavar="A B")] = (),
    fail_on: Limits = (),
    allow_different: AllowDifferent = False,
    json: JsonFile = None,
    markdown: TextFile = None,
) -> int:
    """Compare two runs of latency and say whether an engine is slower.

    Both files are results of latency --json. Engines with the same file name are compared. The ratio of their median
    latencies has a 95% interval; a ratio is a difference only if its interval excludes 1.

    Exit code: 0, 1 error, 2 usage or not comparable, 3 regression, 4 a measurement is invalid.

    Args:
        baseline: The earlier results of latency --json.
        candidate: The later results of latency --json.
        pair: Compare engine A of the baseline with engine B of the candidate (file names or paths); repeatable.
            Default: engines with the same file name.
        markdown: Write the table and its notes as Markdown.
    """
    from benchmarks.reporting.comparison import as_markdown, present
    from benchmarks.results import comparison
    from benchmarks.results.base import dump
    from benchmarks.results.latency import load_latency
    from benchmarks.results.tables import emit

    found = comparison.compare_runs(
        load_latency(baseline),
        load_latency(candidate),
        [comparison.limit(text) for text in fail_on],
        pairs=pair,
        allow_different=allow_different,
        argv=words(),
    )
    title = f"{candidate} over {baseline}, 95% intervals; a ratio below 1 is faster"
    if json is not None:
        emit(dump([found]), json)
    if markdown is not None:
        emit(as_markdown(found, title), markdown)
    present(Console(stderr="-" in (json, markdown)), found, title)
    return comparison.exit_code(found)


app = command_line("python -m benchmarks.compare")
app.default(compare)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``compare``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
