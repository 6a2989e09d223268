"""An engine that does several inferences a call; in a module of its own, since a worker has to import it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.worker import Settings, open_for
from compress.engines.base import Array, Closing, Engine


def write_order(path: Path, engine: Path, times: int) -> Path:
    """Write the file that ``open_repeated`` reads."""
    path.write_text(json.dumps({"engine": str(engine.resolve()), "times": times}), encoding="utf-8")
    return path


class Repeated(Closing):
    """An engine that does ``times`` inferences a call: more of the same work, and of nothing else."""

    def __init__(self, engine: Engine, times: int) -> None:
        self._engine, self._times = engine, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        for _ in range(self._times - 1):
            self._engine.run(feeds)
        return self._engine.run(feeds)

    def close(self) -> None:
        self._engine.close()


def open_repeated(path: Path, settings: Settings) -> Any:
    """Open a file that names an engine file and how often it is run a call."""
    order = json.loads(path.read_text(encoding="utf-8"))
    return Repeated(open_for(Path(order["engine"]), settings), order["times"])
