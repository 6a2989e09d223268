"""What is asked of NVML, answered by a stand-in where there is no GPU: names and constants are the real ones."""

from __future__ import annotations

from types import SimpleNamespace

import pynvml
import pytest

from benchmarks.timing.gpu import gpu_names, gpu_states


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,  # of which the second is another user's
        "nvmlDeviceGetHandleByIndex": lambda index: "gpu 0" if index == 0 else refuse(),
        "nvmlDeviceGetName": lambda gpu: "A board" if gpu == "gpu 0" else "?",
        "nvmlSystemGetDriverVersion": lambda: "575.1",
        "nvmlDeviceGetTemperature": lambda gpu, sensor: 84,
        "nvmlDeviceGetClockInfo": refuse,
        "nvmlDeviceGetViolationStatus": lambda gpu, policy: SimpleNamespace(violationTime=3_000_000 * policy),
        "nvmlDeviceGetComputeRunningProcesses": lambda gpu: [object(), object()],
    }
    for name, answer in answers.items():
        assert hasattr(pynvml, name)
        monkeypatch.setattr(pynvml, name, answer)


@pytest.mark.usefixtures("one_gpu")
def test_a_gpu_tells_what_it_is_and_does() -> None:
    assert gpu_names() == ["A board, driver 575.1"]
    (state,) = gpu_states()
    assert (state.temperature_c, state.clock_mhz, state.processes) == (84, None, 2)
    assert state.slowed_ms == 3.0 * (pynvml.NVML_PERF_POLICY_THERMAL + pynvml.NVML_PERF_POLICY_RELIABILITY)


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    assert gpu_names() == []
    assert gpu_states() == []
