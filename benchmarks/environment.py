"""The machine: what it is, and what it was doing while something was measured on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

from benchmarks.schema import Host, MachineState, Tool
from compress import __version__

T = TypeVar("T")
_LIBRARIES = ("numpy", "onnxruntime", "openvino", "onnx", "torch", "tensorrt")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def host() -> Host:
    """Processor, memory, system and library versions."""
    return Host(
        cpu=_cpu_model(),
        cores=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        system=platform.platform(),
        python=platform.python_version(),
        libraries={name: version for name in _LIBRARIES if (version := _version(name)) is not None},
    )


def machine_state(watch_s: float = 0.2) -> MachineState:
    """Load, governor, clock, temperature and affinity now; ``watch_s`` seconds are spent on counting busy time."""
    frequency = _told(psutil.cpu_freq)
    return MachineState(
        load_1min=_told(lambda: os.getloadavg()[0]),
        busy_percent=psutil.cpu_percent(watch_s),
        available_bytes=psutil.virtual_memory().available,
        governor=_told(lambda: _GOVERNOR.read_text(encoding="ascii").strip()),
        frequency_mhz=frequency.current if frequency else None,
        temperature_c=_told(_hottest),
        affinity=_told(lambda: sorted(os.sched_getaffinity(0))),
    )


def tool() -> Tool:
    """This package's version and, in a git checkout, its commit."""
    checkout = Path(__file__).parents[1]
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    found = None
    if (checkout / ".git").exists():  # installed elsewhere, git would name the commit of somebody else's project
        found = _told(lambda: subprocess.run(command, capture_output=True, text=True, timeout=10, check=True))
    return Tool(version=__version__, git_sha=found.stdout.strip() if found else None)


def concerns(before: MachineState, after: MachineState, threads: int) -> list[str]:
    """What about the machine makes a timing less trustworthy, in words."""
    found = []
    cores = len(before.affinity) if before.affinity else os.cpu_count() or 1
    if before.busy_percent is not None and before.busy_percent > 25:
        found.append(f"the machine was {before.busy_percent:.0f}% busy before the measurement began")
    if threads > cores:
        found.append(f"{threads} threads on {cores} processors")
    for state in (before, after):
        if state.governor not in (None, "performance"):
            found.append(f"the CPU governor is '{state.governor}', not 'performance'")
            break
    if before.frequency_mhz and after.frequency_mhz and after.frequency_mhz < 0.9 * before.frequency_mhz:
        found.append(f"the clock fell from {before.frequency_mhz:.0f} to {after.frequency_mhz:.0f} MHz")
    return found


def _cpu_model() -> str:
    lines = _told(lambda: Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()) or []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _hottest() -> float | None:
    sensors = psutil.sensors_temperatures()
    return max((reading.current for readings in sensors.values() for reading in readings), default=None)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _told(ask: Callable[[], T]) -> T | None:
    """What the system answers; None where it has no such file, sensor, call or program."""
    try:
        return ask()
    except (OSError, AttributeError, NotImplementedError, subprocess.SubprocessError):
        return None
