"""An engine during a measurement: its worker processes and their samples so far."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.statistics import intervals
from benchmarks.timing.contention import Watched
from benchmarks.timing.worker import Opened, Settings, Turn, WarmedUp, Worker


class Round(NamedTuple):
    """A turn: nanoseconds an inference, of all samples of all streams; how many a second that was; and the machine."""

    samples: list[int]
    per_s: float
    watched: Watched


@dataclass
class Life:
    """The processes of an engine that were alive at one time, one a stream, and what they measured.

    Attributes:
        processors: the processors that they were bound to; none: not bound.
    """

    processors: Sequence[int]
    opened: Sequence[Opened]
    warmed: Sequence[WarmedUp]
    turns: list[Round] = field(default_factory=list)
    peak: int = 0


@dataclass
class TimedEngine:
    """An engine, and the lives of its worker processes, one after the other.

    Attributes:
        workers: the processes that are alive now.
        inner: inferences per sample; it grows if a later process is faster in its warm-up.
    """

    path: Path
    settings: Settings
    lives: list[Life] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)

    def open(self, start: Callable[[int], Worker]) -> None:
        """Begin a life: the engine is opened in the process of one stream after the other, and warmed up in all.

        Args:
            start: a stream's process.
        """
        opened = []
        for stream in range(self.settings.streams):
            self.workers.append(start(stream))
            opened.append(self.workers[-1].open())
        for worker in self.workers:
            worker.begin_warm_up()
        warmed = [worker.warmed_up() for worker in self.workers]
        processors = [processor for worker in self.workers for processor in worker.settings.affinity or ()]
        self.lives.append(Life(processors, opened, warmed))

    def take_turn(self) -> None:
        """Time the engine for one turn, in all streams at once."""
        turn = Turn.of(self.settings)
        if len(self.workers) > 1:
            turn = turn.by_time(self.inner * max(warmed.call_ns for warmed in self.lives[-1].warmed) / 1e9)
        for worker in self.workers:
            worker.begin_turn(turn, self.inner)
        sampled = [worker.sampled() for worker in self.workers]
        per_s = sum(1e9 / statistics.fmean(one.samples) for one in sampled)
        watched = Watched.together([one.watched for one in sampled])
        self.lives[-1].turns.append(Round([ns for one in sampled for ns in one.samples], per_s, watched))

    def close(self) -> None:
        """Close the engine in its processes and store their peak memory."""
        self.lives[-1].peak = sum(worker.finish() for worker in self.workers)
        self.end()

    def end(self) -> None:
        """End its processes, even if they are busy."""
        while self.workers:
            self.workers.pop().end()

    @property
    def inner(self) -> int:
        return max(warmed.inner for life in self.lives for warmed in life.warmed)

    @property
    def opened(self) -> list[Opened]:
        """By all its processes."""
        return [opened for life in self.lives for opened in life.opened]

    @property
    def load_ms(self) -> float:
        return statistics.median(opened.load_ns for opened in self.opened) / 1e6

    @property
    def first_ms(self) -> float:
        return statistics.median(opened.first_ns for opened in self.opened) / 1e6

    @property
    def turns(self) -> list[Round]:
        return [turn for life in self.lives for turn in life.turns]

    @property
    def rounds_ms(self) -> list[intervals.Floats]:
        """Milliseconds per inference, one array per turn."""
        return [np.asarray(turn.samples) / 1e6 for turn in self.turns]

    @property
    def throughput(self) -> list[intervals.Floats]:
        """Inputs a second, one value a turn, by processes: see ``intervals.blocks``."""
        rates = [np.array([self.settings.batch * turn.per_s]) for turn in self.turns]
        return intervals.blocks(rates, len(self.lives))

    @property
    def blocks_ms(self) -> list[intervals.Floats]:
        """The blocks that intervals resample, in milliseconds: see ``intervals.blocks``."""
        return intervals.blocks(self.rounds_ms, len(self.lives))

    @property
    def median(self) -> intervals.Interval:
        return intervals.median_interval(self.blocks_ms, seed=self.settings.seed)

    @property
    def watched(self) -> Watched:
        return Watched.sum(turn.watched for turn in self.turns)
