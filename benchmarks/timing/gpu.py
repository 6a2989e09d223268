"""What NVIDIA's management library (NVML) reports about the GPUs: their names, and their state."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import pynvml

from benchmarks.results.latency import GpuState

T = TypeVar("T")

# Reasons for which a GPU slows down by itself; NVML counts nanoseconds since the driver was loaded.
_SLOWED_BY = (pynvml.NVML_PERF_POLICY_THERMAL, pynvml.NVML_PERF_POLICY_RELIABILITY)


def gpu_names() -> list[str]:
    """Model and driver of each GPU; none without a driver."""
    return _each(lambda gpu: f"{pynvml.nvmlDeviceGetName(gpu)}, driver {pynvml.nvmlSystemGetDriverVersion()}")


def gpu_states() -> list[GpuState]:
    """The state of each GPU; a value that it does not report is None."""
    return _each(_state)


def _state(gpu: Any) -> GpuState:
    slowed = [_told(partial(pynvml.nvmlDeviceGetViolationStatus, gpu, policy)) for policy in _SLOWED_BY]
    users = _told(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(gpu))
    return GpuState(
        temperature_c=_told(lambda: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU)),
        clock_mhz=_told(lambda: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM)),
        slowed_ms=None if None in slowed else sum(each.violationTime for each in slowed if each) / 1e6,
        processes=None if users is None else len(users),
    )


def _each(ask: Callable[[Any], T]) -> list[T]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found = [_told(partial(_of_board, ask, index)) for index in range(_told(pynvml.nvmlDeviceGetCount) or 0)]
        return [one for one in found if one is not None]
    finally:
        pynvml.nvmlShutdown()


def _of_board(ask: Callable[[Any], T], index: int) -> T:
    return ask(pynvml.nvmlDeviceGetHandleByIndex(index))


def _told(ask: Callable[[], T]) -> T | None:
    """The value that a GPU reports; None if it does not support the query."""
    try:
        return ask()
    except pynvml.NVMLError:
        return None
