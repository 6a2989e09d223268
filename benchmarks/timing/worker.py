"""A process that opens one engine, warms it up and times it, and sleeps between its turns.

The timing loops take the clock as an argument, so that tests can pass a fake one. The rest is the communication between
the parent process (``Worker``) and the worker process (``_Bench``).
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.machinery import ModuleSpec
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from benchmarks.timing.contention import Watched, watch
from benchmarks.timing.devices import on_gpu
from calibration.children import tied, undisturbed
from compress.engines.base import Array, Engine, TensorSpec, engine_of, open_engine
from compress.errors import EngineError, PipelineError

Clock = Callable[[], int]
Run = Callable[[], object]
T = TypeVar("T")

FEWEST = (
    6  # processes with which an interval can keep its level: see ``benchmarks.statistics.intervals.median_interval``
)
_POOL, _POOL_BYTES = 8, 256 << 20
_SAMPLE_NS = 1_000_000
_STEADY = 0.05
_CHECK_NS = 1_000_000_000  # time limit for checking the outputs of the pool; a slow engine checks fewer


@dataclass(frozen=True)
class Settings:
    """How engines are measured.

    Attributes:
        batch, threads, device: of the engine; no device: the engine's own default.
        warmup_s, warmup_runs: seconds and inferences of warm-up, at least.
        duration_s: seconds of samples per engine, at least.
        iterations: samples per engine, at least.
        limit_s: seconds of samples per engine, at most, if it is too slow for ``iterations``.
        processes: worker processes per engine, one after the other; each takes its part of the seconds and samples.
        streams: processes of an engine that run at the same time, each with its own inputs.
        turns: turns of an engine in the life of a process; the engines take turns.
        precision: stop after six or more processes once the interval of every median is within this share of it; 0:
            use all processes.
        percentile: percentiles to report besides 90, 95 and 99.
        seed: of the inputs and of the order within a round.
        affinity: processors that the workers are bound to; none: a process with one thread is bound to one processor,
            a process with more threads is not bound.
        images: pools of inputs (K, C, H, W), one for each input size; an engine that no pool fits gets random normal
            ones.
        trust: open a compiled engine although its sidecar does not match it.
        timeout_s: seconds to wait for an answer, beyond the time that the request itself takes.
    """

    batch: int = 1
    threads: int = 1
    device: str | None = None
    warmup_s: float = 0.2
    warmup_runs: int = 10
    duration_s: float = 5.0
    iterations: int = 200
    limit_s: float = 60.0
    processes: int = 10
    streams: int = 1
    turns: int = 4
    precision: float = 0.0
    percentile: tuple[float, ...] = ()
    seed: int = 0
    affinity: tuple[int, ...] | None = None
    images: tuple[Array, ...] = field(default=(), repr=False, compare=False)
    trust: bool = False
    timeout_s: float = 120.0

    def on_gpu(self, engine: Path) -> bool:
        """Whether an engine file runs on a GPU."""
        return self.device == "cuda" or on_gpu(engine_of(engine))


Opener = Callable[[Path, Settings], Engine]


def open_for(path: Path, settings: Settings) -> Engine:
    """Open an engine file with the threads, device and trust of ``settings``."""
    return open_engine(path, threads=settings.threads, device=settings.device, trust=settings.trust)


@dataclass(frozen=True)
class Opened:
    """A worker's answer about the engine that it opened; MACs, precision and target if the file states them."""

    name: str
    version: str
    requested: str
    provider: str
    modes: Mapping[str, str | int | bool]
    shape: tuple[int, ...]
    pool: int
    load_ns: int
    first_ns: int
    finite: bool
    macs: int | None
    precision: str | None
    target: str


@dataclass(frozen=True)
class WarmedUp:
    """The time of a call after the warm-up, the calls in a sample of at least 1 ms, and whether it became steady."""

    call_ns: float
    inner: int
    steady: bool


@dataclass(frozen=True)
class Turn:
    """How long an engine is timed before the next one's turn.

    Attributes:
        seconds, least: seconds of samples and number of samples, at least; sampling stops after ``limit_s`` seconds
            even if ``least`` is not reached.
    """

    seconds: float
    least: int = 1
    limit_s: float = math.inf

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """One turn's part of the seconds and samples of ``settings``."""
        turns = settings.processes * settings.turns
        return cls(settings.duration_s / turns, math.ceil(settings.iterations / turns), settings.limit_s / turns)

    def by_time(self, sample_s: float) -> Turn:
        """The same turn limited by time only, to as long as its samples of ``sample_s`` take: streams end it together.

        >>> Turn(0.1, least=5, limit_s=2.0).by_time(0.05)
        Turn(seconds=0.25, least=1, limit_s=2.0)
        """
        return Turn(min(max(self.seconds, self.least * sample_s), self.limit_s), 1, self.limit_s)


_WAKE = Turn(0.0, least=2, limit_s=0.1)


@dataclass(frozen=True)
class Sampled:
    """The samples of a turn, in nanoseconds per inference, and the use of the machine during it."""

    samples: list[int]
    watched: Watched


def time_samples(run: Run, clock: Clock, *, turn: Turn, inner: int) -> list[int]:
    """Call ``run`` repeatedly for a turn, at least once.

    Args:
        inner: calls per sample.

    Returns:
        nanoseconds per call, one value per sample.
    """
    samples = []
    begin = clock()
    while True:
        start = clock()
        for _ in range(inner):
            run()
        stop = clock()
        samples.append((stop - start) // inner)
        spent = (stop - begin) / 1e9
        if (spent >= turn.seconds and len(samples) >= turn.least) or spent >= turn.limit_s:
            return samples


def warm_up(run: Run, clock: Clock, *, seconds: float, runs: int, limit_s: float = math.inf) -> WarmedUp:
    """Call ``run`` for at least ``seconds`` and ``runs`` calls, then until it is steady.

    Steady: the medians of two consecutive windows, each ``seconds`` long, differ by at most 5%; at most three more
    windows are tried. If ``runs`` calls take longer than ``limit_s``, fewer are made.

    """
    before, steady = statistics.median(time_samples(run, clock, turn=Turn(seconds, runs, limit_s), inner=1)), False
    for _ in range(4):
        now = statistics.median(time_samples(run, clock, turn=Turn(seconds), inner=1))
        steady = abs(now - before) <= _STEADY * before
        before = now
        if steady:
            break
    return WarmedUp(before, inner_calls(before), steady)


def inner_calls(call_ns: float) -> int:
    """The number of calls that last 1 ms together, so that the clock's cost and resolution do not matter.

    >>> inner_calls(300_000), inner_calls(5_000_000)
    (4, 1)
    """
    return max(1, math.ceil(_SAMPLE_NS / max(call_ns, 1)))


def input_pool(specs: tuple[TensorSpec, ...], settings: Settings) -> list[dict[str, Array]]:
    """Several different feeds: batches of the given images, or random ones.

    Raises:
        EngineError: an input has a dynamic dimension other than the batch, or a fixed batch of another size.
    """
    shapes = {spec.name: _shape(spec, settings.batch) for spec in specs}
    one = sum(math.prod(shapes[spec.name]) * spec.dtype.itemsize for spec in specs)
    count = max(2, min(_POOL, _POOL_BYTES // one))
    rng = np.random.default_rng(settings.seed)
    fitting = pool_for(shapes[specs[0].name], settings.images) if len(specs) == 1 else None
    if fitting is not None:
        index = np.arange(count * settings.batch).reshape(count, settings.batch) % len(fitting)
        return [{specs[0].name: fitting[chosen].astype(specs[0].dtype)} for chosen in index]
    return [{spec.name: _random(rng, shapes[spec.name], spec.dtype) for spec in specs} for _ in range(count)]


def pool_for(shape: Sequence[int], pools: Sequence[Array]) -> Array | None:
    """The first pool whose images have the shape of an input (N, C, H, W)."""
    return next((pool for pool in pools if pool.shape[1:] == tuple(shape[1:])), None)


def _shape(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    first, *rest = spec.shape
    if None in rest:
        raise EngineError(f"only the batch may be dynamic, the engine takes {spec}")
    if first not in (None, batch):
        raise EngineError(f"the engine takes batches of {first}, not {batch}", remedy=f"use --batch {first}")
    return (batch, *(dim for dim in rest if dim is not None))


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 128, shape).astype(dtype)


class _Bench:
    """Lives in the worker process; each public method answers one request."""

    def __init__(self, path: Path, settings: Settings, opener: Opener) -> None:
        if settings.affinity:
            os.sched_setaffinity(0, settings.affinity)
        self._settings = settings
        start = time.perf_counter_ns()
        self._engine = opener(path, settings)
        self._load_ns = time.perf_counter_ns() - start
        self._pool = input_pool(self._engine.inputs, settings)
        self._feeds = itertools.cycle(self._pool)
        self._inner = 1

    def _run(self) -> dict[str, Array]:
        return self._engine.run(next(self._feeds))

    def open(self) -> Opened:
        start = time.perf_counter_ns()
        outputs = [self._run()]
        first_ns = time.perf_counter_ns() - start
        for _ in self._pool[1:]:
            if time.perf_counter_ns() - start < _CHECK_NS:
                outputs.append(self._run())
        engine = self._engine
        return Opened(
            name=engine.name,
            version=engine.version,
            requested=engine.requested,
            provider=engine.provider,
            modes=engine.modes,
            shape=next(iter(self._pool[0].values())).shape,
            pool=len(self._pool),
            load_ns=self._load_ns,
            first_ns=first_ns,
            finite=all(bool(np.isfinite(array).all()) for output in outputs for array in output.values()),
            macs=engine.metadata.macs if engine.metadata else None,
            precision=engine.metadata.precision if engine.metadata else None,
            target=engine.metadata.target if engine.metadata else "",
        )

    def warm_up(self) -> WarmedUp:
        settings = self._settings
        return warm_up(
            self._run,
            time.perf_counter_ns,
            seconds=settings.warmup_s,
            runs=settings.warmup_runs,
            limit_s=max(settings.warmup_s, settings.limit_s / settings.processes),
        )

    def sample(self, turn: Turn, inner: int) -> Sampled:
        time_samples(self._run, time.perf_counter_ns, turn=_WAKE, inner=1)  # another engine has used the caches since
        with watch() as watched:
            samples = time_samples(self._run, time.perf_counter_ns, turn=turn, inner=inner)
        return Sampled(samples, watched())

    def finish(self) -> int:
        self._engine.close()
        return peak_memory()


def peak_memory() -> int:
    """Peak resident memory in bytes; from VmHWM, because getrusage includes the parent's memory before exec."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _serve(pipe: Connection, path: Path, settings: Settings, opener: Opener) -> None:
    """The worker's main: answer requests ``(method, arguments)`` until the pipe closes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    tied(parent.pid)()
    with suppress(EOFError, ConnectionError):  # the parent process has ended, or was killed
        settings = replace(settings, images=pipe.recv())
        try:
            bench = _Bench(path, settings, opener)
        except Exception as error:
            pipe.send(_in_words(error))
            return
        method = ""
        while method != "finish":
            method, arguments = pipe.recv()
            try:
                answer = getattr(bench, method)(*arguments)
            except Exception as error:
                pipe.send(_in_words(error))
                return
            pipe.send(answer)


def _in_words(error: Exception) -> PipelineError:
    return error if isinstance(error, PipelineError) else EngineError(f"{type(error).__name__}: {error}")


def _start(process: BaseProcess) -> None:
    """Start a spawned process that does not import the program's main module: with torch in it that takes seconds.

    It ignores Ctrl-C, also while it is importing: the parent process handles it and ends this one.
    """
    resource_tracker.ensure_running()  # its start would unblock signals
    main = sys.modules["__main__"]
    spec, main.__spec__ = main.__spec__, ModuleSpec("__main__", None)
    try:
        with undisturbed():
            process.start()
    finally:
        main.__spec__ = spec


class Worker:
    """The parent's handle to a worker process with one engine; call ``end`` when done.

    Every request raises EngineError, with the engine's name, if the worker fails, crashes, or does not answer in time;
    a PipelineError of the worker is raised as it is, with its exit code.
    """

    def __init__(self, path: Path, settings: Settings, opener: Opener = open_for) -> None:
        if opener.__module__ == "__main__":
            raise ValueError("the opener must be importable from a module: the worker has another main program")
        self.path, self.settings = path, settings
        self._asked = "", 0.0
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # Without the images: spawn writes its arguments to a pipe, and would wait for ever for a child that has died.
        few = replace(settings, images=())
        self._process = context.Process(target=_serve, args=(theirs, path, few, opener), daemon=True)
        _start(self._process)
        theirs.close()
        with suppress(ConnectionError):  # ``_answer`` finds out that the child has ended
            self._pipe.send(settings.images)

    def open(self) -> Opened:
        """Wait until the engine is open and has run its first inferences."""
        return self._ask(Opened, "open")

    def begin_warm_up(self) -> None:
        """Start the warm-up; ``warmed_up`` waits for its end."""
        self._send("warm_up", expected_s=5 * self.settings.warmup_s)

    def warmed_up(self) -> WarmedUp:
        return self._answer(WarmedUp)

    def begin_turn(self, turn: Turn, inner: int) -> None:
        """Start a turn; ``sampled`` waits for its samples."""
        self._send("sample", turn, inner, expected_s=max(turn.seconds, turn.limit_s))

    def sampled(self) -> Sampled:
        return self._answer(Sampled)

    def finish(self) -> int:
        """Close the engine and return the worker's peak memory in bytes."""
        return self._ask(int, "finish")

    def _ask(self, kind: type[T], method: str) -> T:
        self._send(method)
        return self._answer(kind)

    def _send(self, method: str, *arguments: object, expected_s: float = 0.0) -> None:
        self._asked = method, expected_s + self.settings.timeout_s
        with suppress(ConnectionError):  # the worker has ended: ``_answer`` reports why
            self._pipe.send((method, arguments))

    def _answer(self, kind: type[T]) -> T:
        method, patience_s = self._asked
        answer: object
        try:
            if not self._pipe.poll(patience_s):
                self._process.kill()
                raise EngineError(
                    f"{self.path} hangs: no answer to '{method}' within {patience_s:.0f} s",
                    remedy="give a slow engine more time with --timeout",
                )
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(5)
            code = self._process.exitcode
            raise EngineError(f"{self.path} crashed its worker process (exit code {code})") from None
        if isinstance(answer, PipelineError):
            if str(self.path) not in answer.message:
                answer.message = f"{self.path}: {answer.message}"
            raise answer
        assert isinstance(answer, kind)
        return answer

    def end(self) -> None:
        """End the process, even if it is busy."""
        self._pipe.close()
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
