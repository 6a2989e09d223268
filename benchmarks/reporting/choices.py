"""The networks among which a person chooses: those that no other one beats, each with the way to take it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.deployment.device.predict import RUNTIMES
from benchmarks.reporting.outcome import Section
from benchmarks.reporting.rows import quality, quality_header, sides
from benchmarks.results.networks import MeasuredNetwork, on_front
from benchmarks.results.tables import interval, speedup
from compress import targets

LIMITS = (0.5, 1.0, 2.0, 3.0, 5.0)  # of the accuracy that is lost, in points: those that people ask for
_ROUNDING = 1e-6  # points
_WITHIN = "fastest that loses at most, points"


@dataclass(frozen=True)
class Choice:
    """One network that no other one beats.

    Attributes:
        limits: of ``LIMITS``, those within which this is the fastest network.
    """

    network: MeasuredNetwork
    limits: tuple[float, ...] = ()

    @property
    def file(self) -> str:
        """The file that was measured."""
        return self.network.latency.artifact.path

    @property
    def run(self) -> str:
        """The run's folder, which the file is in."""
        return str(Path(self.file).parent.parent)

    @property
    def deploy(self) -> str | None:
        """The command that makes a folder for a device of the file; None where ``deploy`` has no program for it."""
        if self.network.latency.backend.name not in RUNTIMES or not measured_on_target(self.network):
            return None
        return f"python -m benchmarks.deploy --engine {shlex.quote(self.file)} --output FOLDER"


def measured_on_target(network: MeasuredNetwork) -> bool:
    """Whether a network was measured in an engine of its target; a float file has no target."""
    return not network.target or network.latency.backend.name in targets.profile(network.target).engines


def choices(networks: Sequence[MeasuredNetwork]) -> list[Choice]:
    """The networks that no other one beats, slowest first; see ``on_front``.

    What a network loses is the change of its accuracy against the first network.
    """
    front = on_front(networks)
    losses = [(_lost(one), one) for one in front]
    fastest = {limit: next((one for lost, one in losses if lost <= limit + _ROUNDING), None) for limit in LIMITS}
    return [Choice(one, tuple(limit for limit in LIMITS if fastest[limit] is one)) for one in reversed(front)]


def _lost(network: MeasuredNetwork) -> float:
    """Points of accuracy that are lost against the first network; infinite where accuracy is not what is known."""
    if network.accuracy is None:
        return math.inf
    paired = network.accuracy.paired
    return -100 * paired.difference.value if paired else 0.0


def which(networks: Sequence[MeasuredNetwork]) -> Section:
    """``choices`` as a table."""
    found = choices(networks)
    within = [] if any(one.fidelity for one in networks) else [_WITHIN]
    header = ["network", *within, "input", "latency ms", "speed-up", *quality_header(networks), "file MB"]
    rows = [
        [
            one.network.name,
            *(", ".join(f"{limit:g}" for limit in one.limits) for _ in within),
            sides(one.network),
            interval(one.network.latency.stats["latency_ms"].median, 3),
            speedup(compared.ratio if (compared := one.network.latency.comparison) else None),
            *quality(one.network),
            f"{one.network.bytes / 1e6:.2f}",
        ]
        for one in found
    ]
    return Section("Which one?", header, rows, _note(networks, found))


def _note(networks: Sequence[MeasuredNetwork], found: Sequence[Choice]) -> str:
    if not found:
        return "No network has a VALID measurement: measure again, on a machine that is quiet."
    if any(one.fidelity for one in networks):
        said = ["No other network is as fast and nearer to the dense FP32 network."]
    else:
        said = ["No other network is as fast and more accurate. The estimates decide; mind their intervals."]
    if not all(one.valid for one in networks):
        said.append("Networks with an INVALID measurement are left out.")
    if not all(map(measured_on_target, networks)):
        engines = sorted({one.latency.backend.name for one in networks if not measured_on_target(one)})
        said.append(f"The latencies are those of {', '.join(engines)} on this machine, not of the target's engine.")
    return " ".join(said)
