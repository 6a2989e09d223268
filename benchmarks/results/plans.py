"""The result file of ``benchmarks.plan_latency --json``: the measured latency of plans."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from benchmarks.profiling.kit import Effort
from benchmarks.results.base import Bounds, Record
from compress.config import TargetConfig


class PlanRatio(Record):
    """The latency of one plan."""

    plan: str = Field(description="path of the plan file")
    ratio: Bounds = Field(description="latency of its network over the unpruned network's, both timed in one run")


class PlanLatencyFile(Record):
    """The latencies of several plans."""

    target: TargetConfig = Field(description="target, engine, device, threads and batch of the measurement")
    effort: Effort = Field(description="how long each network was timed")
    plans: tuple[PlanRatio, ...] = Field(description="in the order of --plan")
    schema_version: Literal[1] = 1
