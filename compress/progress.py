"""Progress as a user sees it: a bar on a terminal, plain lines in a log, nothing for a library caller."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Protocol, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from calibration.names import readable
from compress.console import Console

T = TypeVar("T")


class Progress(Protocol):
    """Reports how far a long job is."""

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        """Yield ``items``, showing ``what`` and how many of ``total`` are done."""
        ...

    def note(self, text: str) -> None:
        """Say one line."""
        ...


class Silent:
    """Prints nothing: the default of library functions."""

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        yield from items

    def note(self, text: str) -> None:
        pass


class Terminal:
    """Shows bars on a terminal; elsewhere prints a line if ten seconds have passed since the last one."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr)

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        if total is None and isinstance(items, Sized):
            total = len(items)
        if not self.console.is_terminal:
            yield from self._lines(items, what, total)
            return
        name = TextColumn("{task.description}", markup=False)
        columns = (name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Bars(*columns, console=self.console, transient=True) as bars:
            yield from bars.track(items, total=total, description=readable(what))

    def _lines(self, items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
        last = time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            if time.monotonic() - last > 10:
                last = time.monotonic()
                self.note(f"{what}: {done}" + (f"/{total}" if total else ""))

    def note(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)


SILENT = Silent()
