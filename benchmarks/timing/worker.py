"""One engine in a process of its own, which opens it, warms it up and times it, and sleeps between its turns.

The loops take a clock, so that a test can run them without one; everything else here is the plumbing between the
process that decides (``Worker``) and the one that runs (``_Bench``).
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
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from benchmarks.timing.contention import Watched, watch
from calibration.children import tied, undisturbed
from compress.engines.base import Array, Engine, TensorSpec, open_engine
from compress.errors import EngineError, PipelineError
from compress.registries import BACKENDS

Clock = Callable[[], int]
Run = Callable[[], object]
T = TypeVar("T")

FEWEST = (
    6  # processes with which an interval can keep its level: see ``benchmarks.statistics.intervals.median_interval``
)
_POOL, _POOL_BYTES = 8, 256 << 20
_SAMPLE_NS = 1_000_000
_STEADY = 0.05
_CHECK_NS = 1_000_000_000  # for looking at the outputs of the pool; a slow engine has to do with fewer


@dataclass(frozen=True)
class Settings:
    """How engines are measured.

    Attributes:
        batch, threads, device: of the engine; no device: the runtime's own.
        warmup_s, warmup_runs: at least this long and this often before anything counts.
        duration_s: seconds of samples an engine, at least.
        iterations: samples an engine, at least.
        limit_s: seconds of samples an engine, at most, where it is too slow for ``iterations``.
        processes: worker processes an engine, one after the other; each has its part of the seconds and samples.
        streams: processes of an engine that run at the same time, each on inputs of its own.
        turns: that an engine takes in the life of a process; the engines go round.
        precision: six processes or more are enough once every median is known to within this share; 0: all of them.
        percentile: of the latency, to be told besides 90, 95 and 99.
        seed: of the inputs and of the order within a round.
        affinity: processors that the workers are bound to; none: with one thread each process is bound to one, with
            more it is left to the system.
        images: (K, C, H, W), the pool of inputs; none: random normal.
        trust: open a compiled engine although its sidecar does not vouch for it.
        timeout_s: how long a worker may be silent beyond what was asked of it.
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
    images: Array | None = field(default=None, repr=False, compare=False)
    trust: bool = False
    timeout_s: float = 120.0

    def on_gpu(self, engine: Path) -> bool:
        """Whether an engine file runs on a GPU."""
        return self.device == "cuda" or engine.suffix == BACKENDS["tensorrt"].suffix


Opener = Callable[[Path, Settings], Engine]


def open_for(path: Path, settings: Settings) -> Engine:
    """Open an engine file with the threads, device and trust of ``settings``."""
    return open_engine(path, threads=settings.threads, device=settings.device, trust=settings.trust)


@dataclass(frozen=True)
class Opened:
    """What a worker says of the engine that it opened; work, precision and target where the file tells them."""

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
    """How long a call takes when warm; how many make a sample of at least 1 ms; whether it became steady."""

    call_ns: float
    inner: int
    steady: bool


@dataclass(frozen=True)
class Turn:
    """How long an engine is timed before the next one's turn.

    Attributes:
        seconds, least: of samples, and samples; both are reached, but ``limit_s`` seconds are not exceeded by more than
            a sample.
    """

    seconds: float
    least: int = 1
    limit_s: float = math.inf

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """One of all turns of all processes."""
        turns = settings.processes * settings.turns
        return cls(settings.duration_s / turns, math.ceil(settings.iterations / turns), settings.limit_s / turns)

    def by_time(self, sample_s: float) -> Turn:
        """As long as its samples of ``sample_s`` take, however many they become: streams end it together.

        >>> Turn(0.1, least=5, limit_s=2.0).by_time(0.05)
        Turn(seconds=0.25, least=1, limit_s=2.0)
        """
        return Turn(min(max(self.seconds, self.least * sample_s), self.limit_s), 1, self.limit_s)


_WAKE = Turn(0.0, least=2, limit_s=0.1)


@dataclass(frozen=True)
class Sampled:
    """What a turn has given: nanoseconds an inference, one value a sample; and what the machine did meanwhile."""

    samples: list[int]
    watched: Watched


def time_samples(run: Run, clock: Clock, *, turn: Turn, inner: int) -> list[int]:
    """Call ``run`` again and again for a turn, at least once.

    Args:
        inner: calls a sample.

    Returns:
        nanoseconds a call, one value a sample.
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
    """Call ``run`` for at least ``seconds`` and ``runs`` calls, then on until it is steady.

    Steady: the medians of two windows in a row, each ``seconds`` long, differ by at most 5%; three more are tried. What
    takes longer than ``limit_s`` for ``runs`` calls gets fewer.

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
    """Calls that last a millisecond together, so that the clock's own cost and grain do not count.

    >>> inner_calls(300_000), inner_calls(5_000_000)
    (4, 1)
    """
    return max(1, math.ceil(_SAMPLE_NS / max(call_ns, 1)))


def input_pool(specs: tuple[TensorSpec, ...], settings: Settings) -> list[dict[str, Array]]:
    """Several different feeds: batches of the given images, or random ones.

    Raises:
        EngineError: an input has a dynamic dimension other than the batch, or is made for another batch.
    """
    shapes = {spec.name: _shape(spec, settings.batch) for spec in specs}
    one = sum(math.prod(shapes[spec.name]) * spec.dtype.itemsize for spec in specs)
    count = max(2, min(_POOL, _POOL_BYTES // one))
    rng = np.random.default_rng(settings.seed)
    if settings.images is not None and len(specs) == 1:
        index = np.arange(count * settings.batch).reshape(count, settings.batch) % len(settings.images)
        return [{specs[0].name: settings.images[chosen].astype(specs[0].dtype)} for chosen in index]
    return [{spec.name: _random(rng, shapes[spec.name], spec.dtype) for spec in specs} for _ in range(count)]


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
        time_samples(self._run, time.perf_counter_ns, turn=_WAKE, inner=1)  # the caches are another engine's by now
        with watch() as watched:
            samples = time_samples(self._run, time.perf_counter_ns, turn=turn, inner=inner)
        return Sampled(samples, watched())

    def finish(self) -> int:
        self._engine.close()
        return peak_memory()


def peak_memory() -> int:
    """Bytes of resident memory at their highest; VmHWM, because getrusage counts what the parent had before exec."""
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
    with suppress(EOFError, ConnectionError):  # the deciding process has ended, or was killed
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

    It does not hear Ctrl-C, also while it is importing: that is for the deciding process, which ends this one.
    """
    resource_tracker.ensure_running()  # whose start would let signals through
    main = sys.modules["__main__"]
    spec, main.__spec__ = main.__spec__, ModuleSpec("__main__", None)
    try:
        with undisturbed():
            process.start()
    finally:
        main.__spec__ = spec


class Worker:
    """A process with one engine, and the way to talk to it; ``end`` it.

    Every request raises EngineError, naming the engine, where it fails, crashes, or does not answer in time; an
    error of the pipeline passes through with its exit code.
    """

    def __init__(self, path: Path, settings: Settings, opener: Opener = open_for) -> None:
        if opener.__module__ == "__main__":
            raise ValueError("the opener must be importable from a module: the worker has another main program")
        self.path, self.settings = path, settings
        self._asked = "", 0.0
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, path, settings, opener), daemon=True)
        _start(self._process)
        theirs.close()

    def open(self) -> Opened:
        """Wait until the engine is open and has run its first inferences."""
        return self._ask(Opened, "open")

    def begin_warm_up(self) -> None:
        """Have it warmed up; ``warmed_up`` waits for that."""
        self._send("warm_up", expected_s=5 * self.settings.warmup_s)

    def warmed_up(self) -> WarmedUp:
        return self._answer(WarmedUp)

    def begin_turn(self, turn: Turn, inner: int) -> None:
        """Have it timed for a turn; ``sampled`` waits for what comes of it."""
        self._send("sample", turn, inner, expected_s=max(turn.seconds, turn.limit_s))

    def sampled(self) -> Sampled:
        return self._answer(Sampled)

    def finish(self) -> int:
        """Close the engine; the worker's peak memory in bytes."""
        return self._ask(int, "finish")

    def _ask(self, kind: type[T], method: str) -> T:
        self._send(method)
        return self._answer(kind)

    def _send(self, method: str, *arguments: object, expected_s: float = 0.0) -> None:
        self._asked = method, expected_s + self.settings.timeout_s
        with suppress(ConnectionError):  # it has ended: ``_answer`` finds its last words, or none
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
        """End the process, whatever it is doing."""
        self._pipe.close()
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
