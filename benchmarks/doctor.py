"""``python -m benchmarks.doctor``: show what this machine can run, and how to install what is missing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.cli import JsonFile, run
from compress.commands import command_line
from compress.console import Console


def doctor(*, json: JsonFile = None) -> int:
    """Show what this machine can run, and how to install what is missing.

    It lists the installed engines, how they compute INT8 here (measured), the processor, memory, GPU, clock and
    temperatures, and the targets that can be built. Exit code: 0, even if something is missing.
    """
    from json import dumps

    from benchmarks.results.tables import emit
    from benchmarks.selfcheck.abilities import abilities

    found = abilities()
    console = Console(stderr=json == "-")
    for one in found:
        missing = "MISSING: " if one.here is False else ""
        console.print(f"{one.of + ':':<11}{one.name}: {missing}{one.said}", soft_wrap=True)
        if one.remedy:
            console.print(f"{'':<11}  fix: {one.remedy}", soft_wrap=True)
    if json is not None:
        emit(dumps([asdict(one) for one in found], indent=2) + "\n", json)
    return 0


app = command_line("python -m benchmarks.doctor")
app.default(doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``doctor``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
