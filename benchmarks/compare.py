"""``python -m benchmarks.compare A.json B.json``: is B slower than A, and is that more than noise?

A and B are files of ``benchmarks.latency --json``; engines are paired by file name. ``benchmarks.results.comparison``
holds the rules.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results.comparison import Limit, compare, exit_code, limit
from benchmarks.results.schema import EngineComparison, Gate, RunComparison, dump, load_latency
from benchmarks.results.tables import emit, interval, literal, markdown, show
from compress.commands import run_command
from compress.console import Console


def header(comparison: RunComparison) -> list[str]:
    """The columns of ``rows``."""
    limits = [str(Limit(gate.metric, gate.limit)) for gate in comparison.engines[0].gates]
    return ["engine", "baseline ms", "median ms", "machine", "ratio", "p", *limits]


def rows(comparison: RunComparison) -> list[list[str]]:
    """A comparison as the cells of a table, one row a pair of engines."""
    return [
        [
            _title(one),
            interval(one.baseline_ms),
            interval(one.candidate_ms),
            interval(one.pace, 3) if one.pace else "",
            interval(one.ratio, 3),
            f"{one.mann_whitney_p:.2g}",
            *("INVALID" if one.invalid else gate.decision for gate in one.gates),
        ]
        for one in comparison.engines
    ]


def notes(comparison: RunComparison) -> list[str]:
    """What a reader of the table has to know besides, one line each."""
    found = [f"geometric mean of the ratios: {comparison.geomean:.3f}"]
    if any(one.pace for one in comparison.engines):
        found.append(
            "machine: how many times as long a yardstick took as in the baseline; ratios are at one pace of it"
        )
    for one in comparison.engines:
        name = _title(one)
        if one.pace:
            raw, slope = interval(one.uncorrected, 3), f"{one.slope:.2f}"
            found.append(f"{name}: as measured the ratio is {raw}; it follows the yardstick by a power of {slope}")
        else:
            found.append(
                f"{name}: not corrected for the machine's pace, which the runs do not both tell, or not well enough"
            )
        found += [f"INVALID: {name}: {reason}" for reason in one.invalid]
        found += [_judgement(name, gate) for gate in one.gates if gate.decision != "PASS" and not one.invalid]
        found += [f"different: {name}: {what}: {a} against {b}" for what, (a, b) in one.different.items()]
    found += [f"in one run only, not compared: {path}" for path in comparison.unpaired]
    return [*found, *(f"warning: {text}" for text in comparison.warnings)]


def present(console: Console, comparison: RunComparison, title: str) -> None:
    """Print the table and the notes."""
    show(console, title, header(comparison), rows(comparison))
    for note in notes(comparison):
        console.print(note, soft_wrap=True)


def as_markdown(comparison: RunComparison, title: str) -> str:
    """The table and the notes, for a pull request."""
    bullets = "".join(f"- {literal(note)}\n" for note in notes(comparison))
    return f"{title}\n\n{markdown(header(comparison), rows(comparison))}\n\n{bullets}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every command that compares with an earlier run."""
    parser.add_argument(
        "--fail-on",
        type=limit,
        default=[],
        action="append",
        metavar="METRIC:PERCENT",
        help="exit 3 where it is established that an engine became slower by more: median:5%%; may be repeated",
    )
    parser.add_argument(
        "--allow-different", action="store_true", help="compare although mode or machine differ, and say in what"
    )


def _title(one: EngineComparison) -> str:
    before, now = Path(one.baseline.path).name, Path(one.candidate.path).name
    return now if before == now else f"{now} over {before}"


def _judgement(name: str, gate: Gate) -> str:
    ratio, allowed = interval(gate.ratio, 3), f"{1 + gate.limit:g}"
    if gate.decision == "REGRESSION":
        return f"REGRESSION: {name}: {gate.metric} ratio {ratio}, up to {allowed} is allowed"
    return f"UNDECIDED: {name}: {gate.metric} ratio {ratio} reaches beyond {allowed}; measure longer to decide"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    p.add_argument("baseline", type=Path, metavar="A.json", help="the earlier results of benchmarks.latency --json")
    p.add_argument("candidate", type=Path, metavar="B.json", help="the results that are judged")
    p.add_argument(
        "--pair",
        nargs=2,
        action="append",
        default=[],
        metavar=("A", "B"),
        help="compare engine B of B.json with A of A.json (file name or path); default: those of the same file name",
    )
    add_arguments(p)
    p.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write the comparison as JSON; - is stdout")
    p.add_argument("--markdown", metavar="FILE", help="write the table and its notes as Markdown")
    return p


def _command(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    comparison = compare(
        load_latency(args.baseline),
        load_latency(args.candidate),
        args.fail_on,
        pairs=[(before, now) for before, now in args.pair],
        allow_different=args.allow_different,
        argv=sys.argv if argv is None else argv,
    )
    title = f"{args.candidate} over {args.baseline}, 95% intervals; a ratio below 1 is faster"
    console = Console(stderr="-" in (args.json, args.markdown))
    if args.json is not None:
        emit(dump([comparison]), args.json)
    if args.markdown is not None:
        emit(as_markdown(comparison, title), args.markdown)
    present(console, comparison, title)
    return exit_code(comparison)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 error, 2 usage or not comparable, 3 regression, 4 a measurement is invalid."""
    return run_command(lambda: _command(argv))


if __name__ == "__main__":
    sys.exit(main())
