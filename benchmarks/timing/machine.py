"""Describe the machine, and its state before and after a measurement."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil

from benchmarks.results.base import Host, Tool
from benchmarks.results.latency import Contention, MachineState, Monitor
from benchmarks.timing.gpu import gpu_names, gpu_states
from benchmarks.timing.heat import heat, heat_warnings, slowed_by_heat
from compress import __version__
from compress.engines.saturation import pair_sums

T = TypeVar("T")
# TensorRT for RTX: NVIDIA's package; or the bindings, and ONNX Runtime's plug-in, which carries the libraries.
RTX_LIBRARIES = (
    "tensorrt-rtx",
    *(
        name
        for cuda in ("cu12", "cu13")
        for name in (f"tensorrt-rtx-{cuda}-bindings", f"onnxruntime-ep-nv-tensorrt-rtx-{cuda}")
    ),
)
_LIBRARIES = ("numpy", "onnxruntime", "openvino", "onnx", "torch", "tensorrt", *RTX_LIBRARIES)
_WAITED, _OTHERS = 0.02, 0.1  # warn above these shares of the time and of the processors
_PROCESSORS = Path("/sys/devices/system/cpu")
_GOVERNOR = _PROCESSORS / "cpu0/cpufreq/scaling_governor"
_HIGHEST_CLOCK = "cpufreq/cpuinfo_max_freq"
_SIBLINGS = "topology/thread_siblings_list"
_THROTTLE_COUNT = "cpu[0-9]*/thermal_throttle/core_throttle_count"


def host(*engines: str) -> Host:
    """Processor, memory, system and library versions; and how ``engines`` add INT8 products here."""
    return Host(
        cpu=_cpu_model(),
        cores=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        system=platform.platform(),
        python=platform.python_version(),
        gpus=gpu_names(),
        libraries=installed(_LIBRARIES),
        int8_pair_sums={engine: sums for engine in engines if (sums := pair_sums(engine)) is not None},
    )


def installed(libraries: Sequence[str]) -> dict[str, str]:
    """The versions of those of the packages that are installed."""
    return {name: version for name in libraries if (version := _version(name)) is not None}


def machine_state(watch_s: float = 0.2) -> MachineState:
    """Load, governor, clock, temperature and affinity now; takes ``watch_s`` seconds to count the busy time."""
    frequency = _told(psutil.cpu_freq)
    return MachineState(
        load_1min=_told(lambda: os.getloadavg()[0]),
        busy_percent=psutil.cpu_percent(watch_s),
        available_bytes=psutil.virtual_memory().available,
        governor=_told(lambda: _GOVERNOR.read_text(encoding="ascii").strip()),
        frequency_mhz=frequency.current if frequency else None,
        temperature_c=_told(_hottest),
        affinity=_told(lambda: sorted(os.sched_getaffinity(0))),
        throttled=_throttled(),
        gpus=gpu_states(),
        heat=heat(),
    )


def own_processors() -> list[int]:
    """The processors that this process may run on; all of them if the system does not report it."""
    return _told(lambda: sorted(os.sched_getaffinity(0))) or list(range(os.cpu_count() or 1))


def fastest_processors() -> list[int]:
    """The processors with the highest clock that this process may run on, one of each core first.

    Empty if the system cannot bind a process to a processor.
    """
    own = own_processors() if hasattr(os, "sched_setaffinity") else []
    clocks = {n: _told(partial((_PROCESSORS / f"cpu{n}" / _HIGHEST_CLOCK).read_text, encoding="ascii")) for n in own}
    highest = max((int(clock) for clock in clocks.values() if clock), default=0)
    fastest = [n for n in own if int(clocks[n] or 0) == highest]
    cores = [_told(partial((_PROCESSORS / f"cpu{n}" / _SIBLINGS).read_text, encoding="ascii")) or n for n in fastest]
    return [n for _, n in sorted((cores[:i].count(cores[i]), n) for i, n in enumerate(fastest))]


@contextmanager
def bound_to(processors: Sequence[int] | None) -> Iterator[None]:
    """Within the block, this thread and the processes that it starts run on these processors only."""
    if not processors:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def tool() -> Tool:
    """This package's version and, in a git checkout, its commit."""
    checkout = Path(__file__).parents[1]
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    found = None
    if (checkout / ".git").exists():  # without this check, git could report the commit of another project
        found = _told(lambda: subprocess.run(command, capture_output=True, text=True, timeout=10, check=True))
    return Tool(version=__version__, git_sha=found.stdout.strip() if found else None)


def concerns(monitor: Monitor, threads: int, affinity: Sequence[int] | None = None) -> list[str]:
    """Warnings about the state of the machine, which make a timing less trustworthy."""
    before, after = monitor.before, monitor.after
    found = heat_warnings(monitor.heat)
    cores = len(affinity or before.affinity or range(os.cpu_count() or 1))
    if before.busy_percent is not None and before.busy_percent > 25:
        found.append(f"the machine was {before.busy_percent:.0f}% busy before the measurement began")
    if threads > cores:
        found.append(f"{threads} threads shared {cores} processors")
    for state in (before, after):
        if state.governor not in (None, "performance"):
            found.append(f"the CPU governor is '{state.governor}', not 'performance'")
            break
    if before.frequency_mhz and after.frequency_mhz and after.frequency_mhz < 0.9 * before.frequency_mhz:
        found.append(f"the clock fell from {before.frequency_mhz:.0f} to {after.frequency_mhz:.0f} MHz")
    return found


def throttled(monitor: Monitor, *, on_gpu: bool) -> list[str]:
    """How heat or power limits slowed the machine down during a measurement, which makes it INVALID."""
    before, after = monitor.before, monitor.after
    if on_gpu:
        pairs = zip(before.gpus, after.gpus, strict=False)
        lost = [None if a.slowed_ms is None or b.slowed_ms is None else b.slowed_ms - a.slowed_ms for a, b in pairs]
        return [f"GPU {i} was slowed down by heat or power for {ms:.0f} ms" for i, ms in enumerate(lost) if ms]
    found = slowed_by_heat(monitor.heat)
    if before.throttled is not None and after.throttled is not None and after.throttled > before.throttled:
        found.append(f"processor cores throttled {after.throttled - before.throttled} times")
    return found


def shared(contention: Contention) -> list[str]:
    """Warnings that other programs used enough of the machine to slow a measurement."""
    found = []
    if contention.waited is not None and contention.waited > _WAITED:
        found.append(f"it was ready to run but had to wait for a processor {contention.waited:.1%} of the time")
    if contention.others > _OTHERS * (os.cpu_count() or 1):
        found.append(f"other programs kept {contention.others:.1f} processors busy meanwhile")
    return found


def _cpu_model() -> str:
    lines = _told(lambda: Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()) or []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _hottest() -> float | None:
    sensors = psutil.sensors_temperatures()
    return max((reading.current for readings in sensors.values() for reading in readings), default=None)


def _throttled() -> int | None:
    """The sum of the cores' throttle counters; None if the system has none."""
    counts = [_told(partial(file.read_text, encoding="ascii")) for file in _PROCESSORS.glob(_THROTTLE_COUNT)]
    return sum(int(count) for count in counts if count) if counts else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _told(ask: Callable[[], T]) -> T | None:
    """The value that the system reports; None if it has no such file, sensor, call or program."""
    try:
        return ask()
    except (OSError, AttributeError, NotImplementedError, subprocess.SubprocessError):
        return None
