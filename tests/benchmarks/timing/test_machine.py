from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.results.schema import Contention, GpuState, MachineState
from benchmarks.timing import machine
from benchmarks.timing.machine import concerns, host, machine_state, shared, throttled

QUIET = MachineState(
    load_1min=0.1,
    busy_percent=1.0,
    available_bytes=1 << 30,
    governor="performance",
    frequency_mhz=3000.0,
    temperature_c=50.0,
    affinity=[0, 1],
    throttled=3,
    gpus=[],
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
    assert "2 threads on 1 processors" in concerns(QUIET, QUIET, 2, affinity=(1,))[0]


def test_what_the_machine_does_not_say_is_null() -> None:
    silent = QUIET.model_copy(update={"governor": None, "frequency_mhz": None, "affinity": None, "busy_percent": None})
    assert concerns(silent, silent, 1) == []


def test_heat_is_told() -> None:
    hot = QUIET.model_copy(update={"throttled": 5})
    assert throttled(QUIET, QUIET, on_gpu=False) == []
    assert throttled(QUIET, hot, on_gpu=False) == ["processor cores throttled 2 times"]
    assert throttled(QUIET.model_copy(update={"throttled": None}), hot, on_gpu=False) == []
    cool, slowed, silent = (
        QUIET.model_copy(update={"gpus": [GpuState(temperature_c=90, clock_mhz=500, slowed_ms=ms, processes=1)]})
        for ms in (7.0, 19.0, None)
    )
    assert throttled(cool, slowed, on_gpu=True) == ["GPU 0 was slowed down by heat or power for 12 ms"]
    assert throttled(cool, slowed, on_gpu=False) == throttled(cool, cool, on_gpu=True) == []
    assert throttled(cool, silent, on_gpu=True) == []


def test_other_programs_are_told_where_they_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert shared(Contention(waited=0.01, others=0.1)) == []
    assert shared(Contention(waited=None, others=0.0)) == []
    assert shared(Contention(waited=0.034, others=1.21)) == [
        "had no processor for 3.4% of the time in which it could have run",
        "other programs kept 1.2 processors busy meanwhile",
    ]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system cannot bind a process")
@pytest.mark.parametrize(
    ("clocks", "siblings", "expected"),
    [
        ([], [], [0, 1, 2, 3]),
        ([], ["0-1", "0-1", "2-3", "2-3"], [0, 2, 1, 3]),  # one of each core first
        ([], ["0,2", "1,3", "0,2", "1,3"], [0, 1, 2, 3]),
        ([9, 9, 5, 5], [], [0, 1]),  # the small cores are left out
    ],
)
def test_processors_are_dealt_out_core_by_core(
    clocks: list[int], siblings: list[str], expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, values in (("cpufreq/cpuinfo_max_freq", clocks), ("topology/thread_siblings_list", siblings)):
        for n, value in enumerate(values):
            file = tmp_path / f"cpu{n}" / kind
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{value}\n")
    monkeypatch.setattr(machine, "_PROCESSORS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert machine.fastest_processors() == expected
