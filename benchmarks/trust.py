"""``python -m benchmarks.trust CHECK --engine FILE``: may this harness be believed, on this machine?"""

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
    """May this harness be believed, on this machine?

    overhead: what the harness adds to an inference.

    same: an engine against itself, again and again: how often is a difference seen?

    slower: the same engine with 5% more of the same work: how often is that seen?

    apart: two runs minutes apart: how often do their intervals overlap?

    tools: side by side with the runtime's own tool, in turns.

    Exit code: 0, 1 error, 2 usage, 4 a measurement is invalid, 5 engine or tool absent.

    Args:
        check: One of those above.
        batch: Batch size.
        threads: Intra-op threads.
        tries: How often, twice at least. Default: 20; apart: 10; tools: 6.
        minutes: Between the two runs of apart.
        preset: Of latency.
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
