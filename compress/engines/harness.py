"""Asks the benchmark harness, a process of its own, and reads its JSON: docs/decisions/0007 says why."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.config import TargetConfig
from compress.errors import EngineError
from compress.run import read_json


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @classmethod
    def of(cls, bounds: Mapping[str, float]) -> Interval:
        """From the harness's JSON; ``benchmarks/result.schema.json`` says what is in it."""
        return cls(bounds["value"], bounds["lo"], bounds["hi"])


def ask(subject: str, module: str, arguments: Sequence[str], *, accepted: Collection[int] = (0,)) -> Any:
    """What ``python -m module arguments --json FILE`` writes.

    Args:
        subject: what is measured, for the message of the error.
        accepted: exit codes with which there is an answer.

    Raises:
        EngineError: it ended with another one; the message is its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", module, *arguments, "--json", str(answer)]
        path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # where a user's own network is imported from
        done = subprocess.run(command, env={**os.environ, **path}, capture_output=True, text=True, check=False)
        if done.returncode not in accepted:
            raise EngineError(f"{subject} could not be measured: {_last_words(done.stderr)}")
        return read_json(answer)


def conditions(target: TargetConfig) -> list[str]:
    """The arguments that every latency is measured under."""
    return ["--threads", str(target.threads), "--batch", str(target.batch), "--device", target.device]


def _last_words(stderr: str) -> str:
    """The harness's own error; without one, such as after a crash of Python itself, its last line."""
    lines = stderr.strip().splitlines() or ["it said nothing"]
    return next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[-1])
