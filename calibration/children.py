"""Start child processes that ignore Ctrl-C and that end when their parent ends.

A terminal sends Ctrl-C to a program and to all its children. Only the parent handles it; the parent then ends its
children.
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
    """Block signals while processes are started; a signal that arrives meanwhile is handled after the block.

    The processes start with both signals blocked, and must call ``hear_termination`` when they are ready.
    """
    came: list[int] = []
    handlers = {}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    if threading.current_thread() is threading.main_thread():  # Python runs signal handlers in the main thread only
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
    """Let SIGTERM through again in a process that was started ``undisturbed``. Ctrl-C stays blocked."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def tied(parent: int) -> Callable[[], None]:
    """Return a function that ties a child process to its parent: ``Popen(preexec_fn=tied(os.getpid()))``.

    The child ignores Ctrl-C, and is killed when the thread that started it ends for any reason.
    """
    die = _prctl()

    def tie() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        hear_termination()
        die(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent has ended in the meantime
            os._exit(1)

    return tie


def _prctl() -> Callable[[int, int], object]:
    """Linux's prctl; on other systems a child notices that its parent has ended because their pipe closes."""
    if sys.platform != "linux":
        return lambda *_: None
    from ctypes import CDLL

    return CDLL(None).prctl
