"""The measured latency of width plans: what ``benchmarks.plan_latency --json`` answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from benchmarks.profiling.kit import Effort
from benchmarks.results.base import Bounds, Record
from compress.config import TargetConfig


class PlanRatio(Record):
    """One plan's network."""

    plan: str = Field(description="path of its file")
    ratio: Bounds = Field(description="its latency over the unpruned network's, interleaved")


class PlanLatencyFile(Record):
    """The latencies of the plans that were asked about."""

    target: TargetConfig = Field(description="where it was measured")
    effort: Effort = Field(description="how long")
    plans: tuple[PlanRatio, ...] = Field(description="in the order that was asked")
    schema_version: Literal[1] = 1
