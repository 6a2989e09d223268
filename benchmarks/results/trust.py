"""The result file of ``benchmarks.trust --json``: a check of the timing harness."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from benchmarks.results.base import Host, Record, Tool
from benchmarks.results.latency import LatencyResult, MachineState


class TrustFile(Record):
    """One check: its table, and the measurements behind it."""

    check: str = Field(description="name of the check, such as same")
    engine: str = Field(description="path of the engine file")
    tool: Tool
    host: Host
    before: MachineState = Field(description="state before the first measurement")
    after: MachineState = Field(description="state after the last measurement")
    title: str = Field(description="title of the table")
    header: list[str] = Field(description="names of the columns")
    rows: list[list[str]] = Field(description="cells as they were printed")
    verdict: str = Field(description="summary of the table in a sentence")
    results: tuple[LatencyResult, ...] = Field(
        description="measurements; empty if the check does not use benchmarks.latency"
    )
    schema_version: Literal[1] = 1
