"""Engines that do what a test says: real implementations of the protocol, opened in the worker by name.

The file's text is the script: ``sleep MS``, ``nan``, ``crash``, ``hang``, ``fail``, ``absent``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np

from benchmarks.worker import Settings
from compress.engines.base import Array, TensorSpec
from compress.errors import BackendAbsent, EngineError


class Scripted:
    name = "scripted"
    version = "1"
    requested = provider = "script"
    inputs = (TensorSpec("input", (None, 3), np.dtype("float32")),)
    outputs = (TensorSpec("logits", (None, 2), np.dtype("float32")),)
    metadata = None
    modes: Mapping[str, str | int | bool] = {"scripted": True}
    max_batch = None

    def __init__(self, script: str) -> None:
        self.word, _, self.argument = script.partition(" ")

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self.word == "crash":
            os._exit(7)
        if self.word == "hang":
            time.sleep(600)
        if self.word == "fail":
            raise EngineError("out of tensor cores")
        if self.word == "sleep":
            time.sleep(float(self.argument) / 1e3)
        value = np.nan if self.word == "nan" else 0.0
        return {"logits": np.full((len(feeds["input"]), 2), value, np.float32)}

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def open_scripted(path: Path, settings: Settings) -> Scripted:
    script = path.read_text(encoding="ascii")
    if script == "absent":
        raise BackendAbsent("no such hardware", remedy="buy some")
    return Scripted(script)
