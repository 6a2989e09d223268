"""The shape of a result file, version 3: one truth, from which the shipped JSON Schema is written.

``python -m benchmarks.results.schema`` prints the schema; ``benchmarks/results/result.schema.json`` is its output,
and a test holds the two together. What this version does not measure is null, never made up.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    model_validator,
)

from benchmarks.statistics.intervals import Interval, blocks
from compress.errors import ConfigError
from compress.files import to_json
from compress.parse import parse, read_bytes

SCHEMA_VERSION = 3


class Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Bounds(Record):
    """An estimate with its 95% confidence interval."""

    value: float
    lo: float
    hi: float

    @classmethod
    def of(cls, interval: Interval) -> Bounds:
        return cls(value=interval.value, lo=interval.low, hi=interval.high)


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
    gpus: list[str] = Field(description="model and driver")
    libraries: dict[str, str]
    int8_pair_sums: dict[str, Literal["int32", "int16"]] = Field(
        default_factory=dict,
        description="by engine, what its INT8 kernels add two products in on this processor, as a run of it showed; "
        "int16 overflows with weights that are not made for it",
    )


class GpuState(Record):
    """What a GPU was doing; null where it does not say."""

    temperature_c: float | None
    clock_mhz: float | None
    slowed_ms: float | None = Field(description="for how long heat or power have slowed it since its driver was loaded")
    processes: int | None = Field(description="that compute on it while nothing is measured")


class MachineState(Record):
    """What the machine was doing; null where it does not say."""

    load_1min: float | None
    busy_percent: float | None = Field(description="share of all processors that was busy just before")
    available_bytes: int
    governor: str | None
    frequency_mhz: float | None
    temperature_c: float | None
    affinity: list[int] | None
    throttled: int | None = Field(description="how often processor cores have throttled since the system started")
    gpus: list[GpuState]


class Monitor(Record):
    before: MachineState
    after: MachineState


class Scenario(Record):
    """How the engine was driven."""

    name: Literal["single-stream", "offline"] = Field(description="one inference at a time, or several streams of them")
    batch: int
    shape: list[int]
    inputs: str = Field(description="where the input pool came from")
    pool: int = Field(description="different inputs, used in turn")
    inner: int = Field(description="inferences a sample, so that it lasts about 1 ms; percentiles are of such means")
    streams: PositiveInt = Field(description="processes at the same time, each with inputs of its own")
    processes: PositiveInt = Field(description="worker processes of a stream, one after the other")
    rounds: int = Field(description="turns of this engine, as many in each process")
    processors: list[list[int]] = Field(
        description="that the processes of each number were bound to; none: left to the system"
    )
    interleaved_with: list[str]
    failed: dict[str, str] = Field(
        default_factory=dict, description="engines that left the interleaving, and why: a crash, a hang, an error"
    )


class Summary(Record):
    """Statistics of one metric."""

    n: int
    min: float
    mean: float
    median: Bounds
    stdev: float
    cv: float
    mad: float
    percentiles: dict[str, Bounds | None] = Field(description="p90, p95, p99 ...; null where the samples are too few")


class Verdict(Record):
    status: Literal["VALID", "INVALID"]
    reasons: list[str] = Field(default_factory=list)


class Comparison(Record):
    """This engine against the first of the same interleaved run."""

    baseline: str
    ratio: Bounds = Field(
        description="how many times as long as the baseline it takes: geometric mean over processes of the ratios of "
        "turns that were taken one after the other; below 1 is faster"
    )


class Common(Record):
    schema_version: Literal[3] = 3
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


class Contention(Record):
    """What other programs took of the machine while this engine was being timed."""

    waited: float | None = Field(
        description="of the time in which its threads could have run, the share in which they had no processor; null "
        "where the system does not count it"
    )
    others: float = Field(description="processors that everything else kept busy, on the average")


class Pace(Record):
    """How fast the processor was: a network that is the same in every run, timed in every round of the engine's."""

    sha256: str = Field(description="of the network's file")
    version: str = Field(description="of the ONNX Runtime that ran it")
    rounds_ms: list[PositiveFloat] = Field(description="median of each of its turns; as many as the engine's rounds")


class Work(Record):
    """Arithmetic of the network, as its file tells."""

    macs: int = Field(description="multiply-accumulates of one image")
    precision: str
    gmacs_per_s: float
    peak_gmacs_per_s: float | None = Field(
        description="what large convolutions of the same precision reached in the same engine and run; null: not known"
    )


class LatencyResult(Common):
    kind: Literal["latency"] = "latency"
    device: str
    scenario: Scenario
    stats: dict[Literal["latency_ms"], Summary] = Field(min_length=1)
    load_ms: float = Field(description="opening the engine, in a fresh process; median of the processes")
    first_inference_ms: float = Field(description="median of the processes")
    peak_memory_bytes: int = Field(description="resident memory of the worker process at its highest, of all streams")
    throughput: Bounds = Field(description="inputs a second, of all streams together; median of the rounds")
    outliers: int = Field(description="samples beyond ten robust standard deviations; flagged, never dropped")
    samples_ns: list[Annotated[list[PositiveInt], Field(min_length=1)]] = Field(
        min_length=2, description="nanoseconds an inference, one list a round"
    )
    monitor: Monitor
    contention: Contention
    pace: Pace | None = Field(description="null on a GPU, with several streams, or where no yardstick took part")
    work: Work | None = Field(description="null for a file that does not tell it")
    comparison: Comparison | None

    @model_validator(mode="after")
    def _dealt_out(self) -> LatencyResult:
        if len(self.samples_ns) % self.scenario.processes:
            raise ValueError(f"{len(self.samples_ns)} rounds are not those of {self.scenario.processes} processes")
        if self.pace and len(self.pace.rounds_ms) != len(self.samples_ns):
            raise ValueError(f"{len(self.samples_ns)} rounds, and {len(self.pace.rounds_ms)} of the pace")
        return self

    @property
    def blocks(self) -> list[NDArray[np.float64]]:
        """Milliseconds an inference, by what is independent of one another: see ``intervals.blocks``."""
        return blocks([np.asarray(samples) / 1e6 for samples in self.samples_ns], self.scenario.processes)


class Gate(Record):
    """A limit on how much slower an engine may become, and what the interval says of it."""

    metric: str = Field(description="median, or a percentile such as p90")
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
    ratio: Bounds = Field(
        description="median latency of the candidate over the baseline's, at one pace of the machine where both runs "
        "tell theirs; below 1 is faster"
    )
    uncorrected: Bounds = Field(description="the ratio of the latencies as they were")
    pace: Bounds | None = Field(
        description="how many times as long the yardstick took in the candidate's run; null: not told in both alike"
    )
    slope: float | None = Field(
        description="relative change of the latency for a relative change of the pace of one; null where pace is"
    )
    mann_whitney_p: float = Field(description="two-sided, on the medians of the processes as measured")
    different: dict[str, tuple[str, str]] = Field(description="conditions that were not the same: baseline, candidate")
    invalid: list[str] = Field(description="why a measurement is INVALID")
    gates: list[Gate]


class RunComparison(Record):
    """One run of the harness against an earlier one; their rounds are not interleaved."""

    schema_version: Literal[3] = 3
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


class NodeRecord(Record):
    """A node of the graph that the runtime made."""

    name: str = Field(description="the runtime's")
    op: str = Field(description="operator of the runtime")
    node: str | None = Field(description="node of the exported file that it computes; null where the runtime added it")
    layer: str | None = Field(
        description="layer of the model that made that node; empty: the model itself; null: not told"
    )
    us: float
    share: float = Field(description="of the sum over all nodes")


class LayerRecord(Record):
    """The nodes of one layer."""

    layer: str | None = Field(description="as in a node; null: the nodes without one")
    nodes: int
    us: float = Field(description="sum over the nodes")
    share: float


class NodeProfile(Common):
    """A profile, and the measurement that it follows: all fields of ``Common`` are the measurement's."""

    kind: Literal["node-profile"] = "node-profile"
    runs: int = Field(description="profiled runs, after the warm-up")
    statistic: Literal["median", "mean"] = Field(description="what the time of a node is, over the runs")
    latency_ms: Bounds = Field(description="median of the measurement, without profiling")
    profiled_ms: float = Field(description="median of the profiled runs, from outside")
    nodes_ms: float = Field(description="sum over the nodes of a run, by the same statistic")
    nodes: list[NodeRecord] = Field(description="in the order of the runtime")
    layers: list[LayerRecord] = Field(description="longest first; none where the file names no layers")


AnyResult = Annotated[LatencyResult | AccuracyResult | RunComparison | NodeProfile, Field(discriminator="kind")]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of one result."""
    schema = TypeAdapter(AnyResult).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Benchmark result", **schema}


def dump(results: Sequence[LatencyResult | AccuracyResult | RunComparison]) -> str:
    """Results as a JSON array."""
    return to_json([result.model_dump(mode="json") for result in results]) + "\n"


def load_latency(path: Path) -> list[LatencyResult]:
    """The latency results of a file that ``dump`` has written; at least one.

    Raises:
        ConfigError: it is no such file, or of another schema version.
    """
    remedy = "give a file that `python -m benchmarks.latency --json FILE` of this version has written"
    content = read_bytes(path, remedy=remedy)
    kinds = parse(content, list[_Kind], path, remedy=remedy, error=ConfigError, part=True)
    if not kinds:
        raise ConfigError(f"{path} holds no benchmark results", remedy=remedy)
    for one in kinds:
        if one.kind != "latency":
            raise ConfigError(f"{path} holds results of kind {one.kind!r}, not 'latency'", remedy=remedy)
    return parse(content, list[LatencyResult], path, remedy=remedy, error=ConfigError)


class _Kind(Record):
    """What tells one sort of result from another."""

    schema_version: Literal[3]
    kind: str


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
