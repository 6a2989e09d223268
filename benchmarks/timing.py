"""Measure the latency of engines: interleaved rounds between worker processes of which one is awake at a time.

Several sessions alive in one process slow one another, and a process can be unlucky for its whole life; so every
engine has processes of its own, they take turns in short rounds, and engines are compared round by round. An engine
that fails leaves the others to go on, where the caller says so.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from benchmarks import stats
from benchmarks.environment import concerns, host, machine_state, tool
from benchmarks.schema import (
    Artifact,
    BackendInfo,
    Bounds,
    Comparison,
    LatencyResult,
    MachineState,
    Monitor,
    Scenario,
    Summary,
    Verdict,
)
from benchmarks.worker import Opened, Opener, Settings, Worker, open_for
from compress.engines.base import engine_files
from compress.engines.sidecar import engine_sha256, read_sidecar
from compress.errors import PipelineError
from compress.progress import SILENT, Progress

OnFailure = Callable[[Path, PipelineError], None]

# Spread of the rounds' medians (90th over 10th percentile) beyond which a series is doubtful, and not to be used.
_DOUBTFUL, _UNUSABLE = 1.1, 1.5


@dataclass
class _Series:
    """What has been measured of one engine so far."""

    path: Path
    settings: Settings
    workers: list[Worker]
    opened: Opened
    inner: int
    steady: bool
    stop: Callable[[], None]
    rounds: list[list[int]] = field(default_factory=list)
    peak: int = 0

    @property
    def count(self) -> int:
        return sum(len(samples) for samples in self.rounds)

    @property
    def milliseconds(self) -> list[stats.Floats]:
        return [np.asarray(samples) / 1e6 for samples in self.rounds]


def _raise(_: Path, error: PipelineError) -> NoReturn:
    raise error


def measure(
    engines: Sequence[Path],
    settings: Settings = Settings(),  # noqa: B008 (immutable)
    *,
    yardsticks: Sequence[Path] = (),
    opener: Opener = open_for,
    argv: Sequence[str] = (),
    on_failure: OnFailure = _raise,
    progress: Progress = SILENT,
) -> list[LatencyResult]:
    """Time engines against one another.

    Args:
        engines: files; from the second on, each is compared with the first (of those that do not fail).
        yardsticks: more files, which take part in the same rounds for a twentieth of the time, on random inputs.
        opener: makes the engine in the worker; a module-level function, since it travels to another process.
        argv: the command line, for the record.
        on_failure: told the file and the error of an engine that fails; it leaves the run and the others go on.
            By default the error is raised.

    Returns:
        one result an engine that did not fail, in the order given, then one a yardstick.

    Raises:
        EngineError: an engine cannot be opened, fails, crashes or hangs; the message names it.
        BackendAbsent: its runtime or device is not on this machine.
    """
    before = machine_state()
    with ExitStack() as stack:
        run = _Run(settings, on_failure)
        files = [*((path, settings) for path in engines), *((path, _brief(settings)) for path in yardsticks)]
        for path, how in progress.track(files, "opening engines"):
            with run.may_lose(path):
                run.series.append(one := _open(path, how, opener))
                stack.callback(one.stop)
        run.sample(progress)
        run.finish()
    monitor = Monitor(before=before, after=machine_state())
    return [_result(one, run, monitor, argv) for one in run.series]


def artifact(path: Path) -> Artifact:
    """Path, hash, size and parents of a file."""
    sidecar = read_sidecar(path)
    return Artifact(
        path=str(path),
        sha256=engine_sha256(path),
        bytes=sum(file.stat().st_size for file in engine_files(path)),
        parents={} if sidecar is None else {sidecar.parent: sidecar.parent_sha256},
    )


def bounds(interval: stats.Interval) -> Bounds:
    return Bounds(value=interval.value, lo=interval.low, hi=interval.high)


def summarize(rounds: stats.Rounds, *, seed: int = 0) -> Summary:
    """Statistics of a metric measured in rounds (at least two)."""
    samples = np.concatenate(rounds)
    mean, stdev = float(samples.mean()), float(samples.std(ddof=1))
    quantiles = {q: stats.quantile_interval(samples, q) for q in (0.9, 0.95, 0.99)}
    tails = {f"p{q * 100:.0f}": None if found is None else bounds(found) for q, found in quantiles.items()}
    return Summary(
        n=len(samples),
        min=float(samples.min()),
        mean=mean,
        median=bounds(stats.median_interval(rounds, seed=seed)),
        stdev=stdev,
        cv=stdev / mean,
        mad=stats.mad(samples),
        **tails,
    )


def _open(path: Path, settings: Settings, opener: Opener) -> _Series:
    """Open and warm up one engine after the other, so that none disturbs another's load and first inference."""
    workers, opened, warm = [], [], []
    with ExitStack() as stack:
        for _ in range(settings.processes):
            worker = stack.enter_context(Worker(path, settings, opener))
            workers.append(worker)
            opened.append(worker.open())
            warm.append(worker.warm_up(5 * settings.warmup_s))
        inner, steady = max(w.inner for w in warm), all(w.steady for w in warm)
        return _Series(path, settings, workers, opened[0], inner, steady, stop=stack.pop_all().close)


def _brief(settings: Settings) -> Settings:
    """For a yardstick: a twentieth of the samples, in one process."""
    return replace(
        settings,
        images=None,
        processes=1,
        warmup_s=settings.warmup_s / 10,
        duration_s=settings.duration_s / 20,
        iterations=1,
    )


class _Run:
    """The engines that take turns, and why others no longer do."""

    def __init__(self, settings: Settings, on_failure: OnFailure) -> None:
        self.series: list[_Series] = []
        self.failed: dict[str, str] = {}
        self._settings = settings
        self._on_failure = on_failure

    @contextmanager
    def may_lose(self, path: Path, one: _Series | None = None) -> Iterator[None]:
        """What ``path`` cannot do within takes it, and its ``one`` series, out of the run."""
        try:
            yield
        except PipelineError as error:
            self._on_failure(path, error)
            self.failed[str(path)] = error.message
            if one is not None:
                one.stop()
                self.series = [other for other in self.series if other is not one]

    def sample(self, progress: Progress) -> None:
        """Rounds until every engine has its seconds and its samples; the order within a round is shuffled."""
        settings = self._settings
        rng = np.random.default_rng(settings.seed)
        seconds = settings.duration_s / settings.rounds
        for index in progress.track(range(settings.rounds), "measuring"):
            self._round(index, rng)
        for index in range(settings.rounds, int(settings.limit_s / seconds)):
            if all(one.count >= one.settings.iterations for one in self.series) or self._spent_s() >= settings.limit_s:
                return
            self._round(index, rng)

    def finish(self) -> None:
        """Close the engines, for their peak memory."""
        for one in self.series:
            with self.may_lose(one.path, one):
                one.peak = max(worker.finish() for worker in one.workers)

    def _round(self, index: int, rng: np.random.Generator) -> None:
        turns = [self.series[position] for position in rng.permutation(len(self.series))]
        for one in turns:
            with self.may_lose(one.path, one):
                worker = one.workers[index % len(one.workers)]
                one.rounds.append(worker.sample(one.settings.duration_s / one.settings.rounds, one.inner))

    def _spent_s(self) -> float:
        """Seconds that the slowest engine's samples took."""
        return max(one.inner * sum(sum(samples) for samples in one.rounds) for one in self.series) / 1e9


def _result(one: _Series, run: _Run, monitor: Monitor, argv: Sequence[str]) -> LatencyResult:
    settings, series = one.settings, run.series
    summary = summarize(one.milliseconds, seed=settings.seed)
    flagged = int(stats.outliers(np.concatenate(one.milliseconds)).sum())
    opened = one.opened
    return LatencyResult(
        run_id=uuid.uuid4().hex,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        tool=tool(),
        argv=list(argv),
        config=_plain(settings),
        artifact=artifact(one.path),
        backend=BackendInfo(
            name=opened.name, version=opened.version, requested=opened.requested, actual=opened.provider
        ),
        host=host(),
        device=settings.device or "default",
        scenario=Scenario(
            batch=settings.batch,
            shape=list(opened.shape),
            inputs="random normal" if settings.images is None else "images",
            pool=opened.pool,
            inner=one.inner,
            processes=len(one.workers),
            rounds=len(one.rounds),
            interleaved_with=[str(other.path) for other in series if other is not one],
            failed=run.failed,
        ),
        modes={"threads": settings.threads, **opened.modes},
        stats={"latency_ms": summary},
        load_ms=opened.load_ns / 1e6,
        first_inference_ms=opened.first_ns / 1e6,
        peak_memory_bytes=one.peak,
        throughput=settings.batch / summary.median.value * 1e3,
        outliers=flagged,
        samples_ns=one.rounds,
        monitor=monitor,
        warnings=_warnings(one, summary, flagged, monitor.before, monitor.after, settings),
        verdict=_verdict(one),
        comparison=None if one is series[0] else _comparison(one, series[0], settings.seed),
    )


def _comparison(one: _Series, baseline: _Series, seed: int) -> Comparison:
    ratio = stats.ratio_interval(one.milliseconds, baseline.milliseconds, seed=seed)
    return Comparison(baseline=str(baseline.path), ratio=bounds(ratio))


def _verdict(one: _Series) -> Verdict:
    reasons = []
    if not one.opened.finite:
        reasons.append("the outputs hold NaN or infinity")
    if (spread := _spread(one)) > _UNUSABLE:
        reasons.append(f"the rounds' medians differ by a factor of {spread:.2f}: the machine was not quiet")
    return Verdict(status="INVALID" if reasons else "VALID", reasons=reasons)


def _warnings(
    one: _Series, summary: Summary, flagged: int, before: MachineState, after: MachineState, settings: Settings
) -> list[str]:
    found = concerns(before, after, settings.threads)
    if not one.steady:
        found.append("still not steady after the warm-up")
    if _DOUBTFUL < (spread := _spread(one)) <= _UNUSABLE:
        found.append(f"unstable: the rounds' medians differ by a factor of {spread:.2f}")
    medians = [np.median(np.concatenate(one.milliseconds[i :: len(one.workers)])) for i in range(len(one.workers))]
    if max(medians) > 1.05 * min(medians):
        found.append(f"the worker processes disagree: {min(medians):.3f} to {max(medians):.3f} ms")
    if flagged:
        found.append(f"{flagged} of {summary.n} samples are outliers (kept)")
    if summary.p90 is None:
        found.append(f"{summary.n} samples are too few for p90 ({stats.samples_needed(0.9)} needed)")
    return found


def _spread(one: _Series) -> float:
    low, high = np.quantile([np.median(samples) for samples in one.rounds], [0.1, 0.9])
    return float(high / low)


def _plain(settings: Settings) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if name != "images"}
