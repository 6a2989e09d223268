"""An engine that does several inferences per call; in a module of its own, because a worker has to import it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.timing.worker import Settings, open_for
from compress.engines.base import Array, Closing, Engine
from compress.errors import EngineError
from compress.files import write_json
from compress.parse import Size, read


@dataclass(frozen=True)
class Order:
    """An engine file, and its number of inferences per call."""

    engine: str
    times: Size


def write_order(path: Path, engine: Path, times: int) -> Path:
    """Write the file that ``open_repeated`` reads."""
    write_json(path, asdict(Order(str(engine.resolve()), times)))
    return path


class Repeated(Closing):
    """An engine that does ``times`` inferences per call."""

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
    """Open a file that ``write_order`` has written."""
    order = read(path, Order, remedy="", error=EngineError)
    return Repeated(open_for(Path(order.engine), settings), order.times)
