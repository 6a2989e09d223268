"""``python -m benchmarks.trust CHECK --engine FILE``: check on this machine that the timing can be trusted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from benchmarks.cli import EFFORT, INVALID, SCENARIO, Count, EngineFile, JsonFile, Preset, Seconds, run
from compress.commands import command_line
from compress.console import Console

_TRIES = {"apart": 10, "tools": 6}

CheckName = Literal["overhead", "same", "slower", "apart", "tools"]
Tries = Annotated[int, Parameter(metavar="N", validator=Number(gte=2), group=EFFORT)]


def trust(
    check: CheckName,
    engine: EngineFile,
    *,
    batch: Annotated[Count, Parameter(group=SCENARIO)] = 1,
    threads: Annotated[Count, Parameter(group=SCENARIO)] = 1,
    tries: Tries | None = None,
    minutes: Annotated[Seconds, Parameter(metavar="MIN", group=EFFORT)] = 10.0,
    preset: Annotated[Preset, Parameter(group=EFFORT)] = "normal",
    json: JsonFile = None,
) -> int:
    """Check on this machine that the timing harness can be trusted.

    overhead: measure the time that the harness adds to an inference.

    same: compare an engine with itself many times, and count the false differences.

    slower: compare an engine with one that does 5% more work, and count how often the difference is found.

    apart: repeat a run some minutes later, and count how often the intervals overlap.

    tools: compare the latency with the one that the runtime's own benchmark tool reports.

    Exit code: 0, 1 error, 2 usage, 4 a measurement is invalid, 5 engine or tool absent.

    Args:
        check: Name of the check.
        batch: Batch size.
        threads: Intra-op threads.
        tries: Number of repetitions, at least 2. Default: 20; apart: 10; tools: 6.
        minutes: Minutes between the two runs of apart.
        preset: Preset of latency.
    """
    from benchmarks.results.tables import emit, show
    from benchmarks.results.trust import TrustFile
    from benchmarks.selfcheck.checks import CHECKS
    from benchmarks.timing.machine import host, machine_state, tool
    from benchmarks.timing.presets import PRESETS
    from compress.files import to_json
    from compress.progress import Terminal

    settings = replace(PRESETS[preset], threads=threads, batch=batch)
    more = {"minutes": minutes} if check == "apart" else {}
    before = machine_state()
    found = CHECKS[check](engine, settings, tries or _TRIES.get(check, 20), Terminal(), **more)
    console = Console(stderr=json == "-")
    show(console, found.title, found.header, found.rows)
    console.print(found.verdict, soft_wrap=True)
    for doubt in found.doubts:
        console.print(f"INVALID: {doubt}", soft_wrap=True)
    if json is not None:
        state = {"before": before, "after": machine_state()}
        record = TrustFile(check=check, engine=str(engine), tool=tool(), host=host(), **state, **vars(found))
        emit(to_json(record.model_dump(mode="json")) + "\n", json)
    return INVALID if found.doubts else 0


app = command_line("python -m benchmarks.trust")
app.default(trust)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``trust``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
