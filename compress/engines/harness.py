"""Run a benchmark command in a process of its own and read its JSON; docs/decisions/0007 says why."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from calibration.children import tied
from compress import startup
from compress.config import TargetConfig
from compress.errors import EngineError
from compress.parse import Finite, read

T = TypeVar("T")

_PATIENCE_S = 10  # how long a terminated process may take to end


@dataclass(frozen=True)
class Bounds:
    """An interval in the benchmark's JSON; ``benchmarks/results/result.schema.json`` describes it."""

    value: Finite
    lo: Finite
    hi: Finite


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @classmethod
    def of(cls, bounds: Bounds) -> Interval:
        """Convert an interval of the benchmark's JSON."""
        return cls(bounds.value, bounds.lo, bounds.hi)


def ask(subject: str, module: str, arguments: Sequence[str], form: type[T], *, accepted: Collection[int] = (0,)) -> T:
    """Run ``python -m module arguments --json FILE`` and return what it writes.

    Args:
        subject: what is measured, for the error message.
        form: the fields to read from the answer; see ``compress.parse.read``.
        accepted: exit codes with which there is an answer.

    Raises:
        EngineError: it ended with another exit code; the message is its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = startup.python("-m", module, *arguments, "--json", str(answer))
        code, said = _run(command, startup.same_path())  # the process also imports the user's own network
        if code not in accepted:
            raise EngineError(f"{subject} could not be measured: {_last_words(said)}")
        return read(answer, form, remedy="", error=EngineError, part=True)


def conditions(target: TargetConfig) -> list[str]:
    """The command-line arguments for threads, batch and device that every latency is measured with."""
    return ["--threads", str(target.threads), "--batch", str(target.batch), "--device", target.device]


def _run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """Run a process that does not outlive this one; return its exit code and standard error."""
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="backslashreplace",
        preexec_fn=tied(os.getpid()),
    ) as child:
        try:
            _, said = child.communicate()
        except BaseException:
            child.terminate()  # so that it can clean up, and end its own children
            with suppress(subprocess.TimeoutExpired):
                child.wait(_PATIENCE_S)
            child.kill()
            raise
    return child.returncode, said


def _last_words(stderr: str) -> str:
    """The error message of the benchmark; if there is none, as after a crash of Python itself, the last line."""
    lines = stderr.strip().splitlines() or ["it said nothing"]
    return next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[-1])
