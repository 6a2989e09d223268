"""The shape of a result file, version 1: one truth, from which the shipped JSON Schema is written.

``python -m benchmarks.schema`` prints the schema; ``benchmarks/result.schema.json`` is its output, and a test holds
the two together. What this version does not measure is null, never made up.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError

from compress.errors import ConfigError

SCHEMA_VERSION = 1


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Bounds(Record):
    """An estimate with its 95% confidence interval."""

    value: float
    lo: float
    hi: float


class Artifact(Record):
    """The file that was measured."""

    path: str
    sha256: str
    bytes: int
    parents: dict[str, str] = Field(default_factory=dict, description="SHA-256 by name of what it was built from")


class BackendInfo(Record):
    name: str
    version: str
    requested: str = Field(description="execution provider that was asked for")
    actual: str = Field(description="execution provider that ran")


class Tool(Record):
    name: Literal["resnet-compress"] = "resnet-compress"
    version: str
    git_sha: str | None


class Host(Record):
    """The machine, as far as it matters to a timing."""

    cpu: str
    cores: int = Field(description="logical processors")
    memory_bytes: int
    system: str
    python: str
    libraries: dict[str, str]


class MachineState(Record):
    """What the machine was doing; null where it does not say."""

    load_1min: float | None
    busy_percent: float | None = Field(description="share of all processors that was busy just before")
    available_bytes: int
    governor: str | None
    frequency_mhz: float | None
    temperature_c: float | None
    affinity: list[int] | None


class Monitor(Record):
    before: MachineState
    after: MachineState


class Scenario(Record):
    """How the engine was driven."""

    name: Literal["single-stream"] = "single-stream"
    batch: int
    shape: list[int]
    inputs: str = Field(description="where the input pool came from")
    pool: int = Field(description="different inputs, used in turn")
    inner: int = Field(description="inferences a sample: a sample lasts at least 1 ms")
    processes: int = Field(description="worker processes; round i ran in process i modulo this")
    rounds: int
    interleaved_with: list[str]
    failed: dict[str, str] = Field(
        default_factory=dict, description="engines that left the interleaving, and why: a crash, a hang, an error"
    )


class Summary(Record):
    """Statistics of one metric; a percentile is null where the samples are too few for it."""

    n: int
    min: float
    mean: float
    median: Bounds
    stdev: float
    cv: float
    mad: float
    p90: Bounds | None
    p95: Bounds | None
    p99: Bounds | None


class Verdict(Record):
    status: Literal["VALID", "INVALID"]
    reasons: list[str] = Field(default_factory=list)


class Comparison(Record):
    """This engine against the first of the same interleaved run."""

    baseline: str
    ratio: Bounds = Field(description="median latency of this engine over the baseline's; below 1 is faster")


class Common(Record):
    schema_version: Literal[1] = 1
    run_id: str
    date: str = Field(description="ISO 8601, UTC")
    tool: Tool
    argv: list[str]
    config: dict[str, Any] = Field(description="settings of the measurement")
    artifact: Artifact
    backend: BackendInfo
    host: Host
    modes: dict[str, str | int | bool]
    warnings: list[str]
    verdict: Verdict


class LatencyResult(Common):
    kind: Literal["latency"] = "latency"
    device: str
    scenario: Scenario
    stats: dict[Literal["latency_ms"], Summary] = Field(min_length=1)
    load_ms: float = Field(description="opening the engine, in a fresh process")
    first_inference_ms: float
    peak_memory_bytes: int = Field(description="resident memory of the worker process at its highest")
    throughput: float = Field(description="inputs a second at the median latency")
    outliers: int = Field(description="samples beyond ten robust standard deviations; flagged, never dropped")
    samples_ns: list[Annotated[list[PositiveInt], Field(min_length=1)]] = Field(
        min_length=2, description="nanoseconds an inference, one list a round"
    )
    monitor: Monitor
    comparison: Comparison | None


Metric = Literal["median", "p90", "p95", "p99"]


class Gate(Record):
    """A limit on how much slower an engine may become, and what the interval says of it."""

    metric: Metric
    limit: float = Field(description="share by which it may be slower: 0.05 is 5%")
    ratio: Bounds
    decision: Literal["PASS", "UNDECIDED", "REGRESSION"] = Field(
        description="REGRESSION: the whole interval is beyond the limit; PASS: none of it; UNDECIDED: it straddles it"
    )


class EngineComparison(Record):
    """An engine in one run against an engine in an earlier run."""

    baseline: Artifact
    candidate: Artifact
    baseline_ms: Bounds = Field(description="median latency")
    candidate_ms: Bounds
    ratio: Bounds = Field(description="median latency of the candidate over the baseline's; below 1 is faster")
    mann_whitney_p: float = Field(description="two-sided, on the medians of the rounds")
    different: dict[str, tuple[str, str]] = Field(description="conditions that were not the same: baseline, candidate")
    invalid: list[str] = Field(description="why a measurement is INVALID")
    gates: list[Gate]


class RunComparison(Record):
    """One run of the harness against an earlier one; their rounds are not interleaved."""

    schema_version: Literal[1] = 1
    kind: Literal["comparison"] = "comparison"
    tool: Tool
    argv: list[str]
    engines: list[EngineComparison]
    unpaired: list[str] = Field(description="engines that are in only one of the runs")
    geomean: float = Field(description="geometric mean of the ratios of medians")
    warnings: list[str] = Field(description="what the machine was doing in either run that may explain a difference")


class Accuracy(Record):
    correct: int
    value: Bounds = Field(description="share of the images, Wilson's interval")


class ClassAccuracy(Record):
    """The images of one class."""

    index: int
    name: str = Field(description="the index again where no name is known")
    images: int
    correct: int


class PairedAccuracy(Record):
    """This engine against another on the same images."""

    against: Artifact
    top1: Accuracy
    per_class: list[ClassAccuracy] = Field(default_factory=list, description="of the other engine")
    only_this: int = Field(description="images that only this engine got right")
    only_other: int
    difference: Bounds = Field(description="top-1 of this engine minus the other's, Newcombe's paired interval")
    ratio: Bounds | None = Field(
        None,
        description="top-1 of this engine over the other's, Nam and Blackwelder's interval; null where that is zero",
    )
    mcnemar_p: float
    agreement: float = Field(description="share of the images on which both give the same class")


class AccuracyResult(Common):
    kind: Literal["accuracy"] = "accuracy"
    images: int
    top1: Accuracy
    top5: Accuracy | None = Field(description="null where there are five classes or fewer")
    per_class: list[ClassAccuracy] = Field(default_factory=list, description="classes without images are left out")
    paired: PairedAccuracy | None


AnyResult = Annotated[LatencyResult | AccuracyResult | RunComparison, Field(discriminator="kind")]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of one result."""
    schema = TypeAdapter(AnyResult).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Benchmark result", **schema}


def dump(results: Sequence[LatencyResult | AccuracyResult | RunComparison]) -> str:
    """Results as a JSON array."""
    return json.dumps([result.model_dump(mode="json") for result in results], indent=2) + "\n"


def load_latency(path: Path) -> list[LatencyResult]:
    """The latency results of a file that ``dump`` has written; at least one.

    Raises:
        ConfigError: it is no such file, or of another schema version.
        OSError: it cannot be read.
    """
    remedy = "give a file that `python -m benchmarks.latency --json FILE` has written"
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:  # neither JSON nor text
        raise ConfigError(f"{path} is not JSON: {error}", remedy=remedy) from None
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) and "kind" in one for one in found):
        raise ConfigError(f"{path} holds no benchmark results", remedy=remedy)
    for one in found:
        if one.get("schema_version") != SCHEMA_VERSION:
            version = one.get("schema_version", "none")
            raise ConfigError(
                f"{path} has schema version {version}, this tool reads {SCHEMA_VERSION}",
                remedy="measure again with this version",
            )
        if one["kind"] != "latency":
            raise ConfigError(f"{path} holds results of kind {one['kind']!r}, not 'latency'", remedy=remedy)
    try:
        return TypeAdapter(list[LatencyResult]).validate_python(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path} does not follow the schema: {where}: {first['msg']}", remedy=remedy) from None


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
