"""Processes that this one starts: signals do not come between, Ctrl-C is not theirs, and they do not outlive it.

A terminal sends Ctrl-C to a program and to all its children. Here the program alone decides, and ends its children.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1


@contextmanager
def undisturbed() -> Iterator[None]:
    """Start processes in the block: a signal that comes meanwhile is handled after it.

    They begin with both signals blocked, and must call ``hear_termination`` when they are ready.
    """
    came: list[int] = []
    handlers = {}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    if threading.current_thread() is threading.main_thread():  # where handlers run, whichever thread is interrupted
        for number in _SIGNALS:
            if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None):
                handlers[number] = handler
                signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for one in came:
            signal.raise_signal(one)


def hear_termination() -> None:
    """In a process that was started ``undisturbed``: let SIGTERM through again. Ctrl-C stays its parent's."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def tied(parent: int) -> Callable[[], None]:
    """What ties a process to its parent, to be called in the child: ``Popen(preexec_fn=tied(os.getpid()))``.

    It does not hear Ctrl-C, and is killed when the thread that started it ends, however that ends.
    """
    die = _prctl()

    def tie() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        hear_termination()
        die(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended in the meantime
            os._exit(1)

    return tie


def _prctl() -> Callable[[int, int], object]:
    """Linux's; elsewhere a child notices its parent's end by the pipe between them."""
    if sys.platform != "linux":
        return lambda *_: None
    from ctypes import CDLL

    return CDLL(None).prctl
