"""Asks the benchmark harness, a process of its own, and reads its JSON: docs/decisions/0007 says why."""

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

_PATIENCE_S = 10  # for a process that was told to end


@dataclass(frozen=True)
class Bounds:
    """An interval in the harness's JSON; ``benchmarks/results/result.schema.json`` says what is in it."""

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
        """From the harness's JSON."""
        return cls(bounds.value, bounds.lo, bounds.hi)


def ask(subject: str, module: str, arguments: Sequence[str], form: type[T], *, accepted: Collection[int] = (0,)) -> T:
    """What ``python -m module arguments --json FILE`` writes.

    Args:
        subject: what is measured, for the message of the error.
        form: what of the answer is wanted; see ``compress.parse.read``.
        accepted: exit codes with which there is an answer.

    Raises:
        EngineError: it ended with another one; the message is its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = startup.python("-m", module, *arguments, "--json", str(answer))
        code, said = _run(command, startup.same_path())  # a user's own network is imported there too
        if code not in accepted:
            raise EngineError(f"{subject} could not be measured: {_last_words(said)}")
        return read(answer, form, remedy="", error=EngineError, part=True)


def conditions(target: TargetConfig) -> list[str]:
    """The arguments that every latency is measured under."""
    return ["--threads", str(target.threads), "--batch", str(target.batch), "--device", target.device]


def _run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """The exit code and the standard error of a process that does not outlive this one."""
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
    """The harness's own error; without one, such as after a crash of Python itself, its last line."""
    lines = stderr.strip().splitlines() or ["it said nothing"]
    return next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[-1])
