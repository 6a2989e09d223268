"""How a command ends on Ctrl-C, or on SIGTERM, which containers and CI send.

The first signal raises KeyboardInterrupt, so that blocks that clean up run; a second one ends the process at once. So
does the first one while modules are still being imported. The exit code is 128 + the signal: 130, 143.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from compress.ranks import first_to_speak

STOPPED = "stopped; asking again goes on from here"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = "\x1b[?25h"

_received = 0  # the first signal that stopped a command
_told = False


def leave_at_once() -> None:
    """End the process on a signal without a traceback, while it imports modules, which takes seconds."""
    _handle_by(_leave)


@contextmanager
def interruptible() -> Iterator[None]:
    """In the block SIGTERM raises KeyboardInterrupt as Ctrl-C does; after either, another signal ends the process."""
    global _received, _told
    _received, _told = 0, False
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    _handle_by(_interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            _handle_by(handler, number)


def stopped(error: BaseException) -> int:
    """Say that a command was stopped, and tell its exit code; 0 where ``error`` does not come from a signal.

    After a signal every error is taken for its consequence, such as a child that has ended because of the same one.
    """
    number = _received or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else 0)
    if number and first_to_speak():
        _tell()
    return 128 + number if number else 0


def _handle_by(handler: Any, *signals: int) -> None:
    """Set the handler; one that is ignored, as by the shell for a job in the background, stays so."""
    if threading.current_thread() is threading.main_thread():  # which alone may
        for number in signals or _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)


def _interrupt(number: int, _: FrameType | None) -> None:
    global _received
    _received = number
    _handle_by(_leave)
    raise KeyboardInterrupt


def _leave(number: int, _: FrameType | None) -> None:
    _tell()
    os._exit(128 + (_received or number))


def _tell() -> None:
    """Once, and by the system's own call: sys.stderr may be in the midst of a line."""
    global _told
    if not _told:
        _told = True
        with suppress(OSError):  # nobody may be there to read it
            os.write(2, f"{_SHOW_CURSOR if os.isatty(2) else ''}{STOPPED}\n".encode())  # a bar may have hidden it
