"""The networks among which a person chooses: those that no other one beats, each with the way to take it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.reporting.outcome import Section
from benchmarks.reporting.rows import quality, quality_header, sides
from benchmarks.results.networks import MeasuredNetwork, on_front
from benchmarks.results.tables import interval, speedup

LIMITS = (0.5, 1.0, 2.0, 3.0, 5.0)  # of the accuracy that is lost, in points: those that people ask for
_ROUNDING = 1e-6  # points


@dataclass(frozen=True)
class Choice:
    """One network that no other one beats.

    Attributes:
        limits: of ``LIMITS``, those within which this is the fastest network.
    """

    network: MeasuredNetwork
    limits: tuple[float, ...] = ()

    @property
    def within(self) -> str:
        """
        >>> Choice.within.fget(Choice(None, (0.5, 1.0)))
        '0.5, 1 points'
        """
        return f"{', '.join(f'{limit:g}' for limit in self.limits)} points" if self.limits else ""

    @property
    def file(self) -> str:
        return self.network.latency.artifact.path

    @property
    def deploy(self) -> str:
        """The command that makes a folder for a device of the file."""
        return f"python -m benchmarks.deploy --engine {shlex.quote(self.file)} --output FOLDER"


def choices(networks: Sequence[MeasuredNetwork]) -> list[Choice]:
    """The networks that no other one beats, slowest first; those whose measurement is INVALID are no choice.

    What a network loses is the change against the first network; the first one itself loses nothing.
    """
    front = on_front(network for network in networks if network.valid)
    losses = [(_lost(one), one) for one in front]
    fastest = {limit: next((one for lost, one in losses if lost <= limit + _ROUNDING), None) for limit in LIMITS}
    return [Choice(one, tuple(limit for limit in LIMITS if fastest[limit] is one)) for one in reversed(front)]


def _lost(network: MeasuredNetwork) -> float:
    """Points of accuracy that are lost against the first network; infinite where accuracy is not what is known."""
    if network.accuracy is None:
        return math.inf
    paired = network.accuracy.paired
    return -100 * paired.difference.value if paired else 0.0


def table(networks: Sequence[MeasuredNetwork]) -> Section | None:
    """``choices`` as a table; None if there are none."""
    found = choices(networks)
    limits = ["the fastest that loses at most"] if any(one.limits for one in found) else []
    header = ["network", *limits, "input", "latency ms", "speed-up", *quality_header(networks), "file MB"]
    rows = [
        [
            one.network.name,
            *(one.within for _ in limits),
            sides(one.network),
            interval(one.network.latency.stats["latency_ms"].median, 3),
            speedup(compared.ratio if (compared := one.network.latency.comparison) else None),
            *quality(one.network),
            f"{one.network.bytes / 1e6:.2f}",
        ]
        for one in found
    ]
    note = "No other network here is as fast and more accurate. What is lost is the estimate; mind its interval."
    return Section("Which one?", header, rows, note) if found else None
