"""What a check of the harness has found: ``benchmarks.trust --json``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from benchmarks.results.base import Host, Record, Tool
from benchmarks.results.latency import LatencyResult, MachineState


class TrustFile(Record):
    """One check: its table, and the measurements behind it."""

    check: str = Field(description="its name, such as same")
    engine: str = Field(description="path of the engine file")
    tool: Tool
    host: Host
    before: MachineState = Field(description="before the first measurement")
    after: MachineState = Field(description="after the last")
    title: str = Field(description="of the table")
    header: list[str] = Field(description="names of the columns")
    rows: list[list[str]] = Field(description="as they were printed")
    verdict: str = Field(description="what the table comes to, in a sentence")
    results: tuple[LatencyResult, ...] = Field(description="none where the check times without the harness")
    schema_version: Literal[1] = 1
