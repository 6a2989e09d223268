"""Measure the latency of engines in turns, each in worker processes; those of one engine are awake at a time.

Several sessions alive in one process slow one another, and a process can be unlucky for its whole life: so every
engine gets a fresh process again and again. Within the life of a process the engines take turns, and they are compared
process by process. An engine that fails leaves the others to go on, where the caller says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np

from benchmarks.results.schema import LatencyResult, Monitor
from benchmarks.timing.machine import fastest_processors, machine_state, own_processors
from benchmarks.timing.reference import Yardstick, peaks
from benchmarks.timing.result import pace_of, result_of
from benchmarks.timing.series import Series
from benchmarks.timing.worker import FEWEST, Opener, Settings, Worker, open_for
from compress.errors import PipelineError
from compress.progress import SILENT, Progress

OnFailure = Callable[[Path, PipelineError], None]


def _raise(_: Path, error: PipelineError) -> NoReturn:
    raise error


def measure(
    engines: Sequence[Path],
    settings: Settings = Settings(),  # noqa: B008 (immutable)
    *,
    yardsticks: Sequence[Yardstick] = (),
    opener: Opener = open_for,
    argv: Sequence[str] = (),
    on_failure: OnFailure = _raise,
    progress: Progress = SILENT,
) -> list[LatencyResult]:
    """Time engines against one another.

    Args:
        engines: files; from the second on, each is compared with the first (of those that do not fail).
        yardsticks: files of known work, which take turns with the engines: briefly for the peak of
            ``LatencyResult.work``, throughout for ``LatencyResult.pace``. One that fails leaves its part unknown.
        opener: makes the engine in the worker; a module-level function, since it travels to another process.
        argv: the command line, for the record.
        on_failure: told the file and the error of an engine that fails; it leaves the run and the others go on.
            By default the error is raised.

    Returns:
        one result an engine that did not fail, in the order given.

    Raises:
        EngineError: an engine cannot be opened, fails, crashes or hangs; the message names it.
        BackendAbsent: its runtime or device is not on this machine.
    """
    before = machine_state()
    timed = [Series(path, settings) for path in engines]
    known = [Series(one.path, _brief(settings, throughout=one.throughout)) for one in yardsticks]
    run = _Run(settings, timed, known, opener, on_failure)
    run.sample(progress)
    monitor = Monitor(before=before, after=machine_state())
    ran = [(one, series) for one, series in zip(yardsticks, known, strict=True) if series in run]
    medians = [(one, float(np.median(np.concatenate(series.rounds_ms)))) for one, series in ran]
    peak = peaks((one, ms) for one, ms in medians if not one.throughout)
    pace = next((pace_of(series) for one, series in ran if one.throughout), None)
    ended = [one for one in timed if one in run]
    return [result_of(one, ended, run.failed, monitor, peak, pace, argv) for one in ended]


def _brief(settings: Settings, *, throughout: bool) -> Settings:
    """For a yardstick, one image at a time: a quarter of an engine's time in all processes, or a bit of the first's."""
    processes, share, least = (settings.processes, 4, 8) if throughout else (1, 20, 1)
    return replace(
        settings,
        batch=1,
        images=None,
        processes=processes,
        streams=1,
        warmup_s=settings.warmup_s / 4,
        warmup_runs=2,
        duration_s=settings.duration_s / share,
        iterations=least * processes * settings.turns,
    )


class _Run:
    """The engines that take turns, and why others no longer do."""

    def __init__(
        self,
        settings: Settings,
        timed: Sequence[Series],
        yardsticks: Sequence[Series],
        opener: Opener,
        on_failure: OnFailure,
    ) -> None:
        self.failed: dict[str, str] = {}
        self._settings, self._opener, self._on_failure = settings, opener, on_failure
        self._series = [*timed, *yardsticks]
        self._yardsticks = yardsticks
        self._rng = np.random.default_rng(settings.seed)

    def __contains__(self, series: Series) -> bool:
        return any(one is series for one in self._series)

    def sample(self, progress: Progress) -> None:
        """One process an engine after the other, until each had all of its own or is known well enough."""
        for number in progress.track(range(self._settings.processes), "measuring"):
            if number >= FEWEST and self._precise():
                return
            part = [one for one in self._series if number < one.settings.processes]
            try:
                self._each(part, partial(self._open, number))
                for _ in range(self._settings.turns):
                    self._each([part[index] for index in self._rng.permutation(len(part))], Series.take_turn)
                self._each(part, Series.close)
            finally:
                for one in part:
                    one.end()
            if not self._timed():
                return

    def _open(self, number: int, one: Series) -> None:
        def start(stream: int) -> Worker:
            settings = replace(one.settings, affinity=self._bound(one, number, stream), seed=one.settings.seed + stream)
            return Worker(one.path, settings, self._opener)

        one.open(start)

    def _bound(self, one: Series, number: int, stream: int) -> tuple[int, ...] | None:
        """What the processes of all engines are bound to, so that a slow processor is slow for all of them alike.

        A single stream goes round; several have each their own, always the same ones, since two processors of one core
        are not two of two.
        """
        settings, fastest = self._settings, fastest_processors()
        if settings.threads > 1 or settings.on_gpu(one.path) or not fastest:
            return settings.affinity
        if settings.streams == 1:
            return settings.affinity or (fastest[number % len(fastest)],)
        return ([*(settings.affinity or dict.fromkeys([*fastest, *own_processors()]))][stream],)

    def _each(self, series: Sequence[Series], step: Callable[[Series], None]) -> None:
        """Let one engine after the other take a step; one that fails leaves the run."""
        for one in series:
            if one in self:
                try:
                    step(one)
                except PipelineError as error:
                    one.end()
                    self._series = [other for other in self._series if other is not one]
                    if not self._is_yardstick(one):
                        self.failed[str(one.path)] = error.message
                        self._on_failure(one.path, error)

    def _precise(self) -> bool:
        """Whether every median is known as well as was asked; of a yardstick nothing is."""
        return all(one.median.precision <= self._settings.precision for one in self._timed())

    def _timed(self) -> list[Series]:
        return [one for one in self._series if not self._is_yardstick(one)]

    def _is_yardstick(self, series: Series) -> bool:
        return any(one is series for one in self._yardsticks)
