"""``python tests/fuzz``: spoil files of every kind, read and use them, and print how that ended.

Every case must end with a value or with a PipelineError that names the file. Cases run in processes of their own, under
limits of memory and time, so that a crash, a hang or a bomb is found out and named. ``--kind NAME --case N`` runs one
case again, and shows its traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))  # tiny_resnet

import corpus
import kinds
import torch
from kinds import KINDS, Kind

from compress.engines.examine import examine
from compress.errors import EngineError, PipelineError

MEMORY = 4 << 30  # bytes that a case may take
PROCESSOR_S, WALL_S = 60, 60  # of a case; the machine may be loaded


def outcome(kind: Kind, number: int) -> tuple[str, str]:
    """How a case ends (``accepted``, ``refused``, ``failed``), and what is to say of it."""
    with kinds.spoiled(kind, number) as (what, use):
        try:
            use()
        except Exception as error:  # whatever it raises is judged
            if found := kinds.fault(kind, error):
                frames = traceback.extract_tb(error.__traceback__)
                own = [
                    frame
                    for frame in frames
                    if "site-packages" not in frame.filename and "/lib/python" not in frame.filename
                ]
                return "failed", f"{found} ({_place(own)}); {what}"
            return "refused", str(error)[:300]
        return "accepted", ""


def _place(frames: Sequence[traceback.FrameSummary]) -> str:
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-4:]))


def child(kind: Kind, numbers: Sequence[int], pipe: int) -> None:
    """Run cases and tell of each on a pipe: a line before it, and one after it."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with os.fdopen(pipe, "w") as told:
        for number in numbers:
            told.write(json.dumps([number]) + "\n")
            told.flush()
            signal.setitimer(signal.ITIMER_PROF, PROCESSOR_S)
            started = time.monotonic()
            try:
                end, text = outcome(kind, number)
            except Exception:  # a fault of the fuzzer's own
                end, text = "failed", traceback.format_exc()[-600:]
            signal.setitimer(signal.ITIMER_PROF, 0)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
            told.write(json.dumps([number, end, text, time.monotonic() - started, peak]) + "\n")
            told.flush()


def run_kind(kind: Kind, count: int, home: Path) -> Iterator[list[Any]]:
    """The results of all cases of a kind: number, end, text, seconds, bytes at the highest."""
    waiting = list(range(count))
    while waiting:
        place = Path(tempfile.mkdtemp(dir=home.parent))
        shutil.copytree(home, place, dirs_exist_ok=True, symlinks=True)
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            code = 1
            try:
                os.close(reading)
                os.chdir(place)
                child(kind, waiting, writing)
                code = 0
            finally:
                os._exit(code)
        os.close(writing)
        begun = None
        for line in _lines(reading):
            if len(line) == 1:
                begun = line[0]
            else:
                waiting.remove(line[0])
                begun = None
                yield line
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if begun is not None:
            waiting.remove(begun)
            yield [begun, *_died(kind, begun, status, place), 0.0, 0]
        elif waiting and os.waitstatus_to_exitcode(status):
            raise RuntimeError(f"the process of '{kind.name}' ended with status {status} between two cases")
        shutil.rmtree(place, ignore_errors=True)


def _lines(pipe: int) -> Iterator[list[Any]]:
    """What a child tells, until it ends or is silent for too long."""
    held = b""
    while select.select([pipe], [], [], WALL_S)[0] and (part := os.read(pipe, 1 << 16)):
        held += part
        *whole, held = held.split(b"\n")
        yield from map(json.loads, whole)
    os.close(pipe)


def _died(kind: Kind, number: int, status: int, place: Path) -> tuple[str, str]:
    """What a case that ended its process comes to: with native code, the commands find that out before they open it."""
    code = os.waitstatus_to_exitcode(status)
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if kind.native:
        shutil.rmtree(place)
        shutil.copytree(place.parent / "home", place)
        os.chdir(place)
        with kinds.spoiled(kind, number):
            try:
                examine(Path(kind.file).with_suffix(".xml") if kind.file.startswith("ov/") else Path(kind.file))
            except EngineError:
                return "refused", f"in a process of its own ({how})"
            finally:
                os.chdir(place.parent)
    return "failed", f"the process ended: {how}"


def again(kind: Kind, number: int, home: Path) -> None:
    """Run one case here, and show what it raises."""
    os.chdir(home)
    with kinds.spoiled(kind, number) as (what, use):
        path = Path(kind.file)
        kept = Path(tempfile.gettempdir()) / f"case-{number}-{path.name}"
        if kind.file and path.is_file() and path.stat().st_size < 1 << 30:
            shutil.copyfile(path, kept)
            what += f"; a copy is {kept}"
        print(what)  # noqa: T201
        try:
            use()
            print("accepted")  # noqa: T201
        except PipelineError as error:
            traceback.print_exc()
            print(kinds.fault(kind, error) or "refused, as it should be")  # noqa: T201


def report(rows: dict[str, list[list[Any]]]) -> str:
    """The table: kind, cases, accepted, refused, failures; and the most time and memory of a case."""
    lines = [
        f"{'kind':<32}{'cases':>8}{'accepted':>10}{'refused':>9}{'failed':>8}{'seconds':>9}{'longest':>9}{'MB':>7}"
    ]
    for name, cases in {**rows, "all": [case for each in rows.values() for case in each]}.items():
        ends = [case[1] for case in cases]
        figures = (len(cases), *(ends.count(end) for end in ("accepted", "refused", "failed")))
        seconds = [case[3] for case in cases]
        times = f"{sum(seconds):>9.1f}{max(seconds, default=0):>9.2f}{max((c[4] for c in cases), default=0) >> 20:>7}"
        lines.append(f"{name:<32}{figures[0]:>8}{figures[1]:>10}{figures[2]:>9}{figures[3]:>8}{times}")
    return "\n".join(lines)


def main() -> int:
    p = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__)
    p.add_argument("--cases", type=int, default=1000, help="of all kinds together (1000)")
    p.add_argument("--slow", action="store_true", help="also kinds of which a case takes seconds")
    p.add_argument("--kind", choices=list(KINDS), action="append", help="only this one; may be repeated")
    p.add_argument("--case", type=int, help="run one case of the kind again, here")
    p.add_argument("--json", type=Path, help="write every case's result there")
    args = p.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    out = args.json.resolve() if args.json else None
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        home = Path(folder) / "home"
        home.mkdir()
        os.chdir(home)
        made = os.fork()  # a process of its own, so that those of the cases begin without a runtime's threads
        if made == 0:
            code = 1
            try:
                corpus.make(home)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        if os.waitstatus_to_exitcode(os.waitpid(made, 0)[1]):
            return 2
        os.chdir(folder)
        if args.case is not None:
            again(KINDS[args.kind[0]], args.case, home)
            return 0
        wanted = kinds.counts(args.cases, slow=args.slow)
        rows: dict[str, list[list[Any]]] = {}
        for name in args.kind or wanted:
            rows[name] = []
            for case in run_kind(KINDS[name], wanted[name], home):
                rows[name].append(case)
                if case[1] == "failed":
                    print(f"FAILED {name}, case {case[0]}: {case[2]}", flush=True)  # noqa: T201
        os.chdir("/")
    print(report(rows))  # noqa: T201
    if out is not None:
        out.write_text(json.dumps(rows))
    return 1 if any(case[1] == "failed" for cases in rows.values() for case in cases) else 0


if __name__ == "__main__":
    sys.exit(main())
