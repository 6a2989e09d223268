from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.results.latency import Contention, GpuState, Heat, MachineState, Monitor, ThermalZone
from benchmarks.timing import heat, machine
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


def monitor(before: MachineState, after: MachineState, *during: Heat) -> Monitor:
    return Monitor(before=before, after=after, during=list(during))


def test_machine_describes_itself() -> None:
    assert host().cores >= 1
    assert "onnxruntime" in host().libraries
    assert machine_state(0.01).available_bytes > 0


def test_quiet_machine_raises_no_concern() -> None:
    assert concerns(monitor(QUIET, QUIET), threads=2) == []


def test_each_concern_is_told() -> None:
    busy = QUIET.model_copy(update={"busy_percent": 80.0})
    saving = QUIET.model_copy(update={"governor": "powersave"})
    slow = QUIET.model_copy(update={"frequency_mhz": 1500.0})
    assert "80% busy" in concerns(monitor(busy, QUIET), 1)[0]
    assert "'powersave'" in concerns(monitor(QUIET, saving), 1)[0]
    assert "3000 to 1500 MHz" in concerns(monitor(QUIET, slow), 1)[0]
    assert "4 threads shared 2 processors" in concerns(monitor(QUIET, QUIET), 4)[0]
    assert "2 threads shared 1 processors" in concerns(monitor(QUIET, QUIET), 2, affinity=(1,))[0]


def test_what_the_machine_does_not_say_is_null() -> None:
    silent = QUIET.model_copy(update={"governor": None, "frequency_mhz": None, "affinity": None, "busy_percent": None})
    assert concerns(monitor(silent, silent), 1) == []


def test_heat_is_told() -> None:
    hot = QUIET.model_copy(update={"throttled": 5})
    assert throttled(monitor(QUIET, QUIET), on_gpu=False) == []
    assert throttled(monitor(QUIET, hot), on_gpu=False) == ["processor cores throttled 2 times"]
    assert throttled(monitor(QUIET.model_copy(update={"throttled": None}), hot), on_gpu=False) == []
    cool, slowed, silent = (
        QUIET.model_copy(update={"gpus": [GpuState(temperature_c=90, clock_mhz=500, slowed_ms=ms, processes=1)]})
        for ms in (7.0, 19.0, None)
    )
    assert throttled(monitor(cool, slowed), on_gpu=True) == ["GPU 0 was slowed down by heat or power for 12 ms"]
    assert throttled(monitor(cool, slowed), on_gpu=False) == throttled(monitor(cool, cool), on_gpu=True) == []
    assert throttled(monitor(cool, silent), on_gpu=True) == []


def test_other_programs_are_told_where_they_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert shared(Contention(waited=0.01, others=0.1)) == []
    assert shared(Contention(waited=None, others=0.0)) == []
    assert shared(Contention(waited=0.034, others=1.21)) == [
        "it was ready to run but had to wait for a processor 3.4% of the time",
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


BOARD = {
    "class/thermal/thermal_zone0/type": "cpu-thermal",
    "class/thermal/thermal_zone0/temp": "62300",
    "class/thermal/thermal_zone0/trip_point_0_type": "active",
    "class/thermal/thermal_zone0/trip_point_0_temp": "50000",
    "class/thermal/thermal_zone0/trip_point_1_type": "passive",
    "class/thermal/thermal_zone0/trip_point_1_temp": "80000",
    "class/thermal/thermal_zone0/trip_point_2_type": "hot",
    "class/thermal/thermal_zone0/trip_point_2_temp": "85000",
    "class/thermal/thermal_zone1/type": "x86_pkg_temp",
    "class/thermal/thermal_zone1/temp": "40000",
    "class/thermal/thermal_zone1/trip_point_0_type": "passive",
    "class/thermal/thermal_zone1/trip_point_0_temp": "0",  # not set
    "class/thermal/thermal_zone2/type": "modem",  # asleep: it has no temperature
    "class/thermal/cooling_device0/type": "cpufreq-cpu0",
    "class/thermal/cooling_device0/cur_state": "0",
    "class/thermal/cooling_device1/type": "pwm-fan",
    "class/thermal/cooling_device1/cur_state": "2",
    "class/thermal/cooling_device2/type": "TCC Offset",  # a setting, which cools nothing
    "class/thermal/cooling_device2/cur_state": "3",
    "devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1800000",
    "devices/system/cpu/cpufreq/policy4/scaling_max_freq": "2400000",
    "class/hwmon/hwmon0/name": "rpi_volt",
    "class/hwmon/hwmon0/in0_lcrit_alarm": "0",
    "class/hwmon/hwmon1/temp1_crit_alarm": "no number",
}


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Heat]:
    """A board whose files under /sys say what is in BOARD, but for what a test changes."""
    monkeypatch.setattr(heat, "_SYS", tmp_path)

    def read(changes: dict[str, str] | None = None) -> Heat:
        for name, text in {**BOARD, **(changes or {})}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")
        return heat.heat()

    return read


def test_heat_is_read_from_any_linux(board: Callable[..., Heat]) -> None:
    assert board() == Heat(
        zones=[
            ThermalZone(name="thermal_zone0 (cpu-thermal)", temperature_c=62.3, throttles_at_c=80),
            ThermalZone(name="thermal_zone1 (x86_pkg_temp)", temperature_c=40, throttles_at_c=None),
        ],
        cooling={"cooling_device0 (cpufreq-cpu0)": 0},
        clock_limits_mhz={"policy0": 1800, "policy4": 2400},
    )
    assert machine_state(0.01).heat == board()


def test_a_machine_without_sensors_tells_no_heat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heat, "_SYS", tmp_path)
    assert heat.heat() == Heat()
    assert heat.heat_warnings([Heat()] * 2) == heat.slowed_by_heat([Heat()] * 2) == []


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (
            {"class/thermal/thermal_zone0/temp": "80000"},
            "thermal_zone0 (cpu-thermal) reached 80 °C, and throttles at 80",
        ),
        ({"class/thermal/thermal_zone0/temp": "79900"}, None),
        ({"class/thermal/thermal_zone1/temp": "99000"}, None),
        ({"class/hwmon/hwmon0/in0_lcrit_alarm": "1"}, "in0_lcrit_alarm of hwmon0 (rpi_volt) is on"),
    ],
)
def test_heat_in_the_middle_of_a_measurement_is_warned_of(
    board: Callable[..., Heat], change: dict[str, str], warning: str | None
) -> None:
    hot = board(change)
    quiet = QUIET.model_copy(update={"heat": board()})
    seen = monitor(quiet, quiet, hot, board())
    assert concerns(seen, 1) == ([] if warning is None else [warning])
    assert throttled(seen, on_gpu=False) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"class/thermal/cooling_device0/cur_state": "4", "class/thermal/thermal_zone0/temp": "81000"},
            "cooling_device0 (cpufreq-cpu0) went from cooling state 0 to 4, to cool the processor; the hottest zone "
            "was thermal_zone0 (cpu-thermal), at 81 °C",
        ),
        (
            {"devices/system/cpu/cpufreq/policy4/scaling_max_freq": "1500000"},
            "the highest clock of policy4 was lowered from 2400 to 1500 MHz; the hottest zone was thermal_zone0 "
            "(cpu-thermal), at 62 °C",
        ),
        ({"class/thermal/cooling_device1/cur_state": "9"}, None),  # a fan
        ({"devices/system/cpu/cpufreq/policy4/scaling_max_freq": "2600000"}, None),
    ],
)
def test_a_processor_that_was_slowed_down_for_its_heat_is_told(
    board: Callable[..., Heat], change: dict[str, str], reason: str | None
) -> None:
    hot = board(change)
    quiet = QUIET.model_copy(update={"heat": board()})
    seen = monitor(quiet, quiet, hot, board())
    assert throttled(seen, on_gpu=False) == ([] if reason is None else [reason])
    assert throttled(seen, on_gpu=True) == []


def test_a_processor_that_was_cooled_all_the_time_is_warned_of(board: Callable[..., Heat]) -> None:
    hot = QUIET.model_copy(update={"heat": board({"class/thermal/cooling_device0/cur_state": "2"})})
    (warning,) = concerns(monitor(hot, hot), 1)
    assert (
        warning == "cooling_device0 (cpufreq-cpu0) was already cooling the processor before the measurement, in state 2"
    )
    assert throttled(monitor(hot, hot), on_gpu=False) == []
