"""What has been measured of one engine so far, process by process."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks import stats
from benchmarks.contention import Watched
from benchmarks.worker import Opened, Sampled, Settings, Turn, WarmedUp, Worker


@dataclass
class Life:
    """One worker process of an engine, and what it measured."""

    worker: Worker
    processors: tuple[int, ...]
    opened: Opened
    warmed: WarmedUp
    turns: list[Sampled] = field(default_factory=list)
    peak: int = 0


@dataclass
class Series:
    """An engine, and the processes that it has had; one is alive at most.

    Attributes:
        inner: inferences a sample; more from the process on whose warm-up was faster.
    """

    path: Path
    settings: Settings
    lives: list[Life] = field(default_factory=list)

    def open(self, worker: Worker) -> None:
        """Begin a life: the engine is opened and warmed up."""
        processors = worker.settings.affinity or ()
        self.lives.append(Life(worker, processors, worker.open(), worker.warm_up(5 * self.settings.warmup_s)))

    def take_turn(self) -> None:
        """Time it for a while."""
        self.lives[-1].turns.append(self.lives[-1].worker.sample(Turn.of(self.settings), self.inner))

    def close(self) -> None:
        """End the life, for its peak memory."""
        self.lives[-1].peak = self.lives[-1].worker.finish()

    @property
    def inner(self) -> int:
        return max(life.warmed.inner for life in self.lives)

    @property
    def opened(self) -> Opened:
        return self.lives[0].opened

    @property
    def load_ms(self) -> float:
        return statistics.median(life.opened.load_ns for life in self.lives) / 1e6

    @property
    def first_ms(self) -> float:
        return statistics.median(life.opened.first_ns for life in self.lives) / 1e6

    @property
    def turns(self) -> list[Sampled]:
        return [turn for life in self.lives for turn in life.turns]

    @property
    def rounds_ms(self) -> list[stats.Floats]:
        """Milliseconds an inference, one array a turn."""
        return [np.asarray(turn.samples) / 1e6 for turn in self.turns]

    @property
    def blocks_ms(self) -> list[stats.Floats]:
        """What intervals resample: see ``stats.blocks``."""
        return stats.blocks(self.rounds_ms, len(self.lives))

    @property
    def median(self) -> stats.Interval:
        return stats.median_interval(self.blocks_ms, seed=self.settings.seed)

    @property
    def watched(self) -> Watched:
        return Watched.sum(turn.watched for turn in self.turns)
