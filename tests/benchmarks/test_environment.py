from __future__ import annotations

from benchmarks.environment import concerns, host, machine_state
from benchmarks.schema import MachineState

QUIET = MachineState(
    load_1min=0.1,
    busy_percent=1.0,
    available_bytes=1 << 30,
    governor="performance",
    frequency_mhz=3000.0,
    temperature_c=50.0,
    affinity=[0, 1],
)


def test_machine_describes_itself() -> None:
    assert host().cores >= 1
    assert "onnxruntime" in host().libraries
    assert machine_state(0.01).available_bytes > 0


def test_quiet_machine_raises_no_concern() -> None:
    assert concerns(QUIET, QUIET, threads=2) == []


def test_each_concern_is_told() -> None:
    busy = QUIET.model_copy(update={"busy_percent": 80.0})
    saving = QUIET.model_copy(update={"governor": "powersave"})
    slow = QUIET.model_copy(update={"frequency_mhz": 1500.0})
    assert "80% busy" in concerns(busy, QUIET, 1)[0]
    assert "'powersave'" in concerns(QUIET, saving, 1)[0]
    assert "3000 to 1500 MHz" in concerns(QUIET, slow, 1)[0]
    assert "4 threads on 2 processors" in concerns(QUIET, QUIET, 4)[0]


def test_what_the_machine_does_not_say_is_null() -> None:
    silent = QUIET.model_copy(update={"governor": None, "frequency_mhz": None, "affinity": None, "busy_percent": None})
    assert concerns(silent, silent, 1) == []
