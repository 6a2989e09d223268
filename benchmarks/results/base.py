"""What the result files have in common: the file that was measured, by what, on which machine, and whether it counts.

What a version does not measure is null, never made up. ``benchmarks.results.schema`` lists all kinds of files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.statistics.intervals import Interval
from compress.files import to_json, write_json


class Record(BaseModel):
    """A part of a file, or all of it: one form, by which it is written and read."""

    model_config = ConfigDict(frozen=True)

    def write(self, path: Path) -> None:
        """Write as indented JSON, whole or not at all; ``compress.parse.read`` gives it back."""
        write_json(path, self.model_dump(mode="json"))


def dump(results: Sequence[Record]) -> str:
    """Results as a JSON array."""
    return to_json([result.model_dump(mode="json") for result in results]) + "\n"


class Bounds(Record):
    """An estimate with its 95% confidence interval, all three in one unit."""

    value: float = Field(description="the estimate")
    lo: float = Field(description="lower end of the interval")
    hi: float = Field(description="upper end of the interval")

    @classmethod
    def of(cls, interval: Interval) -> Bounds:
        return cls(value=interval.value, lo=interval.low, hi=interval.high)


class Artifact(Record):
    """The file that was measured."""

    path: str = Field(description="as it was named, or as it was found in the run's folder")
    sha256: str = Field(description="of its bytes, and of its weights' where they are in a second file")
    bytes: int = Field(description="size of both")
    parents: dict[str, str] = Field(default_factory=dict, description="SHA-256 by name of what it was built from")


class BackendInfo(Record):
    """The runtime that ran the file."""

    name: str = Field(description="such as onnxruntime")
    version: str = Field(description="the runtime's own")
    requested: str = Field(description="execution provider that was asked for")
    actual: str = Field(description="execution provider that ran")


class Tool(Record):
    """The program that measured."""

    name: Literal["resnet-compress"] = "resnet-compress"
    version: str = Field(description="of the package")
    git_sha: str | None = Field(description="commit of the checkout; null outside of one")


class Host(Record):
    """The machine, as far as it matters to a timing."""

    cpu: str = Field(description="the processor's name")
    cores: int = Field(description="logical processors")
    memory_bytes: int = Field(description="of the whole machine")
    system: str = Field(description="operating system and its version")
    python: str = Field(description="version of Python")
    gpus: list[str] = Field(description="model and driver")
    libraries: dict[str, str] = Field(description="version by name")
    int8_pair_sums: dict[str, Literal["int32", "int16"]] = Field(
        default_factory=dict,
        description="by engine, what its INT8 kernels add two products in on this processor, as a run of it showed; "
        "int16 overflows with weights that are not made for it",
    )


class Verdict(Record):
    """Whether a measurement may be used."""

    status: Literal["VALID", "INVALID"] = Field(description="INVALID: do not use the figures")
    reasons: list[str] = Field(default_factory=list, description="why it is INVALID")


class Common(Record):
    """What every result of one engine file says."""

    schema_version: Literal[3] = 3
    run_id: str = Field(description="the same for all results of one run of the command")
    date: str = Field(description="ISO 8601, UTC")
    tool: Tool
    argv: list[str] = Field(description="the command line; empty where another command asked")
    config: dict[str, Any] = Field(description="settings of the measurement")
    artifact: Artifact
    backend: BackendInfo
    host: Host
    modes: dict[str, str | int | bool] = Field(description="how the engine was opened, such as its threads")
    warnings: list[str] = Field(description="what a reader should know, though the figures may be used")
    verdict: Verdict
