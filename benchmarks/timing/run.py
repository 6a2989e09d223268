"""Measure the latency of engines in turns. Each has worker processes of its own, and only one engine runs at a time.

Several sessions in one process slow one another, and some processes are slow for their whole life. So every engine
gets a fresh process several times. Within the life of a process the engines take turns, and they are compared process
by process. Where the caller handles failures, an engine that fails leaves the run and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np

from benchmarks.results.latency import Heat, LatencyResult, Monitor
from benchmarks.timing.heat import heat
from benchmarks.timing.machine import fastest_processors, machine_state, own_processors
from benchmarks.timing.reference import ReferenceNetwork, peaks
from benchmarks.timing.result import pace_of, result_of, unfinished
from benchmarks.timing.timed_engine import TimedEngine
from benchmarks.timing.worker import FEWEST, Opener, Settings, Worker, open_for
from compress.errors import PipelineError
from compress.progress import SILENT, Progress

OnFailure = Callable[[Path, PipelineError], None]
OnProcess = Callable[[Sequence[LatencyResult]], None]


def _raise(_: Path, error: PipelineError) -> NoReturn:
    raise error


def measure(
    engines: Sequence[Path],
    settings: Settings = Settings(),  # noqa: B008 (immutable)
    *,
    references: Sequence[ReferenceNetwork] = (),
    opener: Opener = open_for,
    argv: Sequence[str] = (),
    on_failure: OnFailure = _raise,
    on_process: OnProcess | None = None,
    progress: Progress = SILENT,
) -> list[LatencyResult]:
    """Time engines against one another.

    Args:
        engines: files; each is compared with the first (of those that do not fail).
        references: reference networks, which take turns with the engines: at the beginning for the peak of
            ``LatencyResult.work``, in every round for ``LatencyResult.pace``. If one fails, that value is unknown.
        opener: opens the engine in the worker; a module-level function, because it is sent to another process.
        argv: the command line, to be stored in the results.
        on_failure: called with the file and the error of an engine that fails; the other engines continue.
            By default the error is raised.
        on_process: called between two processes (from the second on) with the results so far, marked INVALID, so
            that a long measurement that is killed leaves results.

    Returns:
        one result for each engine that did not fail, in the given order.

    Raises:
        EngineError: an engine cannot be opened, fails, crashes or hangs; the message names it.
        BackendAbsent: its runtime or device is not on this machine.
    """
    before, during = machine_state(), list[Heat]()
    timed = [TimedEngine(path, settings) for path in engines]
    known = [TimedEngine(one.path, _brief(settings, throughout=one.throughout)) for one in references]
    run = _Run(settings, timed, known, opener, on_failure)

    def results() -> list[LatencyResult]:
        monitor = Monitor(before=before, during=during, after=machine_state())
        ran = [(one, series) for one, series in zip(references, known, strict=True) if series in run]
        medians = [(one, float(np.median(np.concatenate(series.rounds_ms)))) for one, series in ran]
        peak = peaks((one, ms) for one, ms in medians if not one.throughout)
        pace = next((pace_of(series) for one, series in ran if one.throughout), None)
        left = [one for one in timed if one in run]
        return [result_of(one, left, run.failed, monitor, peak, pace, argv) for one in left]

    for processes in run.sample(progress):
        during.append(heat())
        if on_process and 1 < processes < settings.processes:  # an interval needs two
            on_process([unfinished(result, settings.processes) for result in results()])
    return results()


def _brief(settings: Settings, *, throughout: bool) -> Settings:
    """Settings of a reference network, one image at a time.

    Args:
        throughout: a quarter of an engine's time, in all processes; else a twentieth, in the first process only.
    """
    processes, share, least = (settings.processes, 4, 8) if throughout else (1, 20, 1)
    return replace(
        settings,
        batch=1,
        images=(),
        processes=processes,
        streams=1,
        warmup_s=settings.warmup_s / 4,
        warmup_runs=2,
        duration_s=settings.duration_s / share,
        iterations=least * processes * settings.turns,
    )


class _Run:
    """The engines that take turns, and the errors of those that failed."""

    def __init__(
        self,
        settings: Settings,
        timed: Sequence[TimedEngine],
        references: Sequence[TimedEngine],
        opener: Opener,
        on_failure: OnFailure,
    ) -> None:
        self.failed: dict[str, str] = {}
        self._settings, self._opener, self._on_failure = settings, opener, on_failure
        self._series = [*timed, *references]
        self._references = references
        self._rng = np.random.default_rng(settings.seed)

    def __contains__(self, series: TimedEngine) -> bool:
        return any(one is series for one in self._series)

    def sample(self, progress: Progress) -> Iterator[int]:
        """Run one process per engine at a time, until each engine had all its processes or is precise enough.

        Yields:
            how many processes each engine has had; none is running then.
        """
        for number in progress.track(range(self._settings.processes), "measuring"):
            if number >= FEWEST and self._precise():
                return
            part = [one for one in self._series if number < one.settings.processes]
            try:
                self._each(part, partial(self._open, number))
                for _ in range(self._settings.turns):
                    self._each([part[index] for index in self._rng.permutation(len(part))], TimedEngine.take_turn)
                self._each(part, TimedEngine.close)
            finally:
                for one in part:
                    one.end()
            if not self._timed():
                return
            yield number + 1

    def _open(self, number: int, one: TimedEngine) -> None:
        def start(stream: int) -> Worker:
            settings = replace(one.settings, affinity=self._bound(one, number, stream), seed=one.settings.seed + stream)
            return Worker(one.path, settings, self._opener)

        one.open(start)

    def _bound(self, one: TimedEngine, number: int, stream: int) -> tuple[int, ...] | None:
        """The processors for the processes of all engines, so that a slow processor is equally slow for all of them.

        Each process of a single stream gets the next processor. Several streams always get the same ones, each its
        own, since two processors of one core are slower than those of two cores.
        """
        settings, fastest = self._settings, fastest_processors()
        if settings.threads > 1 or settings.on_gpu(one.path) or not fastest:
            return settings.affinity
        if settings.streams == 1:
            return settings.affinity or (fastest[number % len(fastest)],)
        return ([*(settings.affinity or dict.fromkeys([*fastest, *own_processors()]))][stream],)

    def _each(self, series: Sequence[TimedEngine], step: Callable[[TimedEngine], None]) -> None:
        """Run a step for one engine after the other; remove an engine that fails."""
        for one in series:
            if one in self:
                try:
                    step(one)
                except PipelineError as error:
                    one.end()
                    self._series = [other for other in self._series if other is not one]
                    if not self._is_reference(one):
                        self.failed[str(one.path)] = error.message
                        self._on_failure(one.path, error)

    def _precise(self) -> bool:
        """Whether the median of every engine is as precise as requested; reference networks do not count."""
        return all(one.median.precision <= self._settings.precision for one in self._timed())

    def _timed(self) -> list[TimedEngine]:
        return [one for one in self._series if not self._is_reference(one)]

    def _is_reference(self, series: TimedEngine) -> bool:
        return any(one is series for one in self._references)
