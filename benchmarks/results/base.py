"""The common fields of the result files: the measured file, the tool, the machine, and the verdict.

A value that was not measured is null. ``benchmarks.results.schema`` lists all sorts of files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.statistics.intervals import Interval
from compress.files import to_json, write_json


class Record(BaseModel):
    """A result file or a part of it; the same class writes and reads it."""

    model_config = ConfigDict(frozen=True)

    def write(self, path: Path) -> None:
        """Write as indented JSON, atomically; ``compress.parse.read`` reads it."""
        write_json(path, self.model_dump(mode="json"))


def dump(results: Sequence[Record]) -> str:
    """Results as a JSON array."""
    return to_json([result.model_dump(mode="json") for result in results]) + "\n"


class Bounds(Record):
    """An estimate with its 95% confidence interval; all three values have the same unit."""

    value: float = Field(description="the estimate")
    lo: float = Field(description="lower end of the interval")
    hi: float = Field(description="upper end of the interval")

    @classmethod
    def of(cls, interval: Interval) -> Bounds:
        return cls(value=interval.value, lo=interval.low, hi=interval.high)


class Artifact(Record):
    """The file that was measured."""

    path: str = Field(description="path as it was given, or as it was found in the run's folder")
    sha256: str = Field(description="SHA-256 of the file, and of its weights if they are in a second file")
    bytes: int = Field(description="size of the file, with its weights")
    parents: dict[str, str] = Field(
        default_factory=dict, description="SHA-256 of the files that it was built from, by name"
    )


class BackendInfo(Record):
    """The runtime that ran the file."""

    name: str = Field(description="name of the engine, such as onnxruntime")
    version: str = Field(description="version of the runtime")
    requested: str = Field(description="execution provider that was requested")
    actual: str = Field(description="execution provider that ran")


class Tool(Record):
    """The program that measured."""

    name: Literal["resnet-compress"] = "resnet-compress"
    version: str = Field(description="version of the package")
    git_sha: str | None = Field(description="commit of the git checkout; null if it is not one")


class Host(Record):
    """The machine's properties that matter for a timing."""

    cpu: str = Field(description="the processor's name")
    cores: int = Field(description="logical processors")
    memory_bytes: int = Field(description="memory of the whole machine")
    system: str = Field(description="operating system and its version")
    python: str = Field(description="version of Python")
    gpus: list[str] = Field(description="model and driver")
    libraries: dict[str, str] = Field(description="version by name")
    int8_pair_sums: dict[str, Literal["int32", "int16"]] = Field(
        default_factory=dict,
        description="by engine, the type in which its INT8 kernels add two products on this processor (measured); "
        "int16 can overflow, unless the weights are limited",
    )


class Verdict(Record):
    """Whether a measurement counts."""

    status: Literal["VALID", "INVALID"] = Field(description="INVALID: do not use the figures")
    reasons: list[str] = Field(default_factory=list, description="why it is INVALID")


class Common(Record):
    """The fields that every result of one engine file has."""

    schema_version: Literal[3] = 3
    run_id: str = Field(description="the same for all results of one run of the command")
    date: str = Field(description="ISO 8601, UTC")
    tool: Tool
    argv: list[str] = Field(description="the command line; empty if another command measured")
    config: dict[str, Any] = Field(description="settings of the measurement")
    artifact: Artifact
    backend: BackendInfo
    host: Host
    modes: dict[str, str | int | bool] = Field(description="how the engine was opened, such as its threads")
    warnings: list[str] = Field(description="doubts about a measurement that still counts")
    verdict: Verdict
