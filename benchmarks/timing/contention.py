"""Measure how much of the machine other programs used while an engine was timed: intervals do not show this."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import psutil

_IDLE = ("idle", "iowait", "guest", "guest_nice")  # Linux counts a guest's time in user's as well
_TASKS = Path("/proc/self/task")

Times = Mapping[str, tuple[int, int]]
"""By thread: nanoseconds on a processor, and nanoseconds ready to run without one."""


@dataclass(frozen=True)
class Watched:
    """Sums in seconds over the time in which an engine was timed.

    Attributes:
        wall: duration.
        ran, waited: how long the threads of the engine's process ran, and how long they were ready to run but waited
            for a processor, summed over the threads; both 0 if the system does not count it (Linux's ``schedstat``).
        own: processor time of the engine's process.
        others: processor time of all other programs on the machine, and of other virtual machines on the same host;
            counted in ticks of the system's clock, so only sums over a second or more are accurate.
    """

    wall: float
    ran: float
    waited: float
    own: float
    others: float

    @classmethod
    def sum(cls, parts: Iterable[Watched]) -> Watched:
        return cls(*map(sum, zip(*map(astuple, parts), strict=True)))

    @classmethod
    def together(cls, parts: Sequence[Watched]) -> Watched:
        """The sum over processes that ran at the same time; they do not count as others to one another.

        >>> Watched.together([Watched(1, 1, 0, 1, 1.5), Watched(1, 1, 0, 1, 1.5)])
        Watched(wall=1.0, ran=2, waited=0, own=2, others=0.5)
        """
        total = cls.sum(parts)
        others = total.others - (len(parts) - 1) * total.own  # each has counted the own time of the rest
        return replace(total, wall=total.wall / len(parts), others=others / len(parts))

    @property
    def share_waited(self) -> float | None:
        """The share of the threads' ready time in which they waited for a processor."""
        return self.waited / (self.ran + self.waited) if self.ran else None

    @property
    def processors_of_others(self) -> float:
        """The average number of processors that other programs kept busy."""
        return max(self.others, 0.0) / self.wall


@contextmanager
def watch() -> Iterator[Callable[[], Watched]]:
    """Count processor time, of this process and of others, until the end of the block; then call the result.

    >>> with watch() as watched:
    ...     _ = sum(range(100_000))
    >>> watched().wall > 0
    True
    """
    found = list[Watched]()
    wall, own, everything, tasks = time.perf_counter(), time.process_time(), _everything(), _tasks()
    yield lambda: found[0]
    later = _tasks()
    pairs = [(tasks.get(task, (0, 0)), times) for task, times in later.items()]  # threads that have ended are left out
    ran, waited = (sum(after[i] - before[i] for before, after in pairs) / 1e9 for i in (0, 1))
    own = time.process_time() - own
    found.append(Watched(time.perf_counter() - wall, ran, waited, own, _everything() - everything - own))


def _everything() -> float:
    times = psutil.cpu_times()._asdict()
    return float(sum(seconds for name, seconds in times.items() if name not in _IDLE))


def _tasks() -> Times:
    found = {}
    for task in _TASKS.iterdir() if _TASKS.exists() else ():
        try:
            ran, waited, _ = (task / "schedstat").read_text(encoding="ascii").split()
        except OSError:  # the thread has ended, or the system does not count
            continue
        found[task.name] = int(ran), int(waited)
    return found
