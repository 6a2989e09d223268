"""Read heat from Linux on any processor: thermal zones, cooling devices, clock limits, alarms.

Only Intel processors count throttled cores (``machine``). This module reads the kernel's generic interface to sensors
and cooling devices, which ARM boards and AMD processors have too. The kernel documents the files in
Documentation/ABI/testing/sysfs-class-thermal, Documentation/hwmon/sysfs-interface and
Documentation/admin-guide/pm/cpufreq.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.results.latency import Heat, ThermalZone

_SYS = Path("/sys")
_THROTTLING = ("passive", "hot")  # at an "active" trip point a fan starts, at a "critical" one the machine ends
_OF_PROCESSORS = re.compile(r"processor|cpu|powerclamp|thermal-idle", re.IGNORECASE)
_ALARMS = ("temp*_crit_alarm", "temp*_emergency_alarm", "in*_lcrit_alarm")  # too hot; too little voltage


def heat() -> Heat:
    """The heat that the system reports now; empty without such sensors, as in most virtual machines."""
    return Heat(
        zones=list(_zones()),
        cooling=dict(_cooling()),
        clock_limits_mhz=dict(_clock_limits()),
        alarms=list(_alarms()),
    )


def slowed_by_heat(states: Sequence[Heat]) -> list[str]:
    """Messages about how the system slowed the processor down during a measurement.

    Args:
        states: from before the measurement to after it, in order of time.
    """
    first, hottest = states[0], _hottest(states)
    found = []
    for name, before in first.cooling.items():
        if (most := max(state.cooling.get(name, 0) for state in states)) > before:
            found.append(f"{name} went from cooling state {before} to {most}, to cool the processor{hottest}")
    for name, before_mhz in first.clock_limits_mhz.items():
        if (least := min(state.clock_limits_mhz.get(name, before_mhz) for state in states)) < before_mhz:
            found.append(f"the highest clock of {name} was lowered from {before_mhz:.0f} to {least:.0f} MHz{hottest}")
    return found


def heat_warnings(states: Sequence[Heat]) -> list[str]:
    """Messages about heat that does not prove a slow-down during the measurement; ``states`` as above."""
    zones = sorted((zone for state in states for zone in state.zones), key=lambda zone: zone.temperature_c)
    hot = {zone.name: zone for zone in zones if zone.throttles_at_c and zone.temperature_c >= zone.throttles_at_c}
    words = [
        f"{name} reached {zone.temperature_c:.0f} °C, and throttles at {zone.throttles_at_c:.0f}"
        for name, zone in hot.items()
    ]
    for name, state in states[0].cooling.items():
        if state > 0:
            words.append(f"{name} was already cooling the processor before the measurement, in state {state}")
    return words + [f"{name} is on" for name in dict.fromkeys(name for state in states for name in state.alarms)]


def _hottest(states: Sequence[Heat]) -> str:
    zones = [zone for state in states for zone in state.zones]
    if not zones:
        return ""
    zone = max(zones, key=lambda zone: zone.temperature_c)
    return f"; the hottest zone was {zone.name}, at {zone.temperature_c:.0f} °C"


def _zones() -> Iterator[ThermalZone]:
    for folder in _numbered("class/thermal", "thermal_zone"):
        temperature = _number(folder / "temp")
        if temperature is None:  # a sensor that is switched off, or of a device that sleeps
            continue
        kinds = {file: _text(file) for file in folder.glob("trip_point_*_type")}
        trips = [
            trip
            for file, kind in kinds.items()
            if kind in _THROTTLING and (trip := _number(file.with_name(file.name.replace("_type", "_temp"))))
        ]
        yield ThermalZone(
            name=f"{folder.name} ({_text(folder / 'type') or 'no type'})",
            temperature_c=temperature / 1e3,
            throttles_at_c=min((trip / 1e3 for trip in trips if trip > 0), default=None),  # unset: 0, or below
        )


def _cooling() -> Iterator[tuple[str, int]]:
    for folder in _numbered("class/thermal", "cooling_device"):
        kind, state = _text(folder / "type"), _number(folder / "cur_state")
        if kind and state is not None and _OF_PROCESSORS.search(kind):
            yield f"{folder.name} ({kind})", state


def _clock_limits() -> Iterator[tuple[str, float]]:
    for folder in _numbered("devices/system/cpu/cpufreq", "policy"):
        if (khz := _number(folder / "scaling_max_freq")) is not None:
            yield folder.name, khz / 1e3


def _alarms() -> Iterator[str]:
    for folder in _numbered("class/hwmon", "hwmon"):
        for file in sorted(file for pattern in _ALARMS for file in folder.glob(pattern)):
            if _number(file):
                yield f"{file.name} of {folder.name} ({_text(folder / 'name') or 'no name'})"


def _numbered(parent: str, prefix: str) -> list[Path]:
    """Folders such as thermal_zone0 and thermal_zone10, by their numbers."""
    folders = [folder for folder in (_SYS / parent).glob(f"{prefix}*") if folder.name.removeprefix(prefix).isdecimal()]
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix(prefix)))


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _number(file: Path) -> int | None:
    try:
        return int(_text(file) or "")
    except ValueError:
        return None
