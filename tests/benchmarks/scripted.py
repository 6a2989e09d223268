"""Engines that do what a test says: real implementations of the protocol, opened in the worker by name.

The file's text is the script: ``sleep MS``, ``spin MS`` (busy, with metadata), ``nan``, ``crash``, ``hang``,
``fail``, ``absent``, ``count`` (adds a dot to a file beside it when it is opened). ``crash N``, ``hang N`` and
``fail N`` come after N runs of 1 ms; ``crash-one N`` in the first process that opens the file, later ones sleep 1 ms.
``stamp MS`` sleeps, and writes when its last 20 runs began and ended to a file of its own beside the script.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np

from benchmarks.timing.worker import Settings
from calibration.preprocess import Preprocess
from compress.engines.base import Array, TensorSpec
from compress.engines.metadata import Metadata
from compress.errors import BackendAbsent, EngineError


class Scripted:
    name = "scripted"
    version = "1"
    requested = provider = "script"
    inputs = (TensorSpec("input", (None, 3), np.dtype("float32")),)
    outputs = (TensorSpec("logits", (None, 2), np.dtype("float32")),)
    metadata: Metadata | None = None
    modes: Mapping[str, str | int | bool] = {"scripted": True}
    max_batch = None

    def __init__(self, script: str, path: Path) -> None:
        self.word, _, self.argument = script.partition(" ")
        self.path, self.stamps = path, deque[tuple[float, float]](maxlen=20)
        if self.word == "spin":
            self.metadata = Metadata("net", "int8", Preprocess(1), ("a", "b"), 5_000_000, 7, "", "1")
        self.patience = int(self.argument or 0) if self.word in ("crash", "hang", "fail") else 0

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.patience -= 1
        if self.patience >= 0:
            time.sleep(1e-3)
        elif self.word == "crash":
            os._exit(7)
        elif self.word == "hang":
            time.sleep(600)
        elif self.word == "fail":
            raise EngineError("out of tensor cores")
        elif self.word in ("sleep", "stamp"):
            begin = time.monotonic()
            time.sleep(float(self.argument) / 1e3)
            self.stamps.append((begin, time.monotonic()))
        elif self.word == "spin":
            end = time.perf_counter() + float(self.argument) / 1e3
            while time.perf_counter() < end:
                pass
        value = np.nan if self.word == "nan" else 0.0
        return {"logits": np.full((len(feeds["input"]), 2), value, np.float32)}

    def close(self) -> None:
        if self.word == "stamp":
            self.path.with_suffix(f".{os.getpid()}").write_text(f"{self.stamps[0][0]} {self.stamps[-1][1]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def open_scripted(path: Path, settings: Settings) -> Scripted:
    script = path.read_text(encoding="ascii")
    if script == "count":
        with path.with_suffix(".opened").open("a") as file:
            file.write(".")
    if script == "absent":
        raise BackendAbsent("no such hardware", remedy="buy some")
    if script.startswith("crash-one"):
        try:
            path.with_suffix(".lock").touch(exist_ok=False)
            script = script.replace("crash-one", "crash")
        except FileExistsError:
            script = "sleep 1"
    return Scripted(script, path)
