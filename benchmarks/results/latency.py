"""Latencies, of one engine and of one run against an earlier one: ``benchmarks.latency``, ``benchmarks.compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from benchmarks.results.base import Artifact, Bounds, Common, Record, Tool
from benchmarks.statistics.intervals import blocks
from compress.errors import ConfigError
from compress.parse import parse, read_bytes


class GpuState(Record):
    """What a GPU was doing; null where it does not say."""

    temperature_c: float | None = Field(description="of the chip")
    clock_mhz: float | None = Field(description="of its multiprocessors")
    slowed_ms: float | None = Field(description="for how long heat or power have slowed it since its driver was loaded")
    processes: int | None = Field(description="that compute on it while nothing is measured")


class ThermalZone(Record):
    """A temperature that the kernel watches."""

    name: str = Field(description="its folder in sysfs, and its type")
    temperature_c: float = Field(description="now")
    throttles_at_c: float | None = Field(
        description="lowest of its trip points at which devices are slowed down (passive or hot); null: it has none"
    )


class Heat(Record):
    """What Linux tells of heat; empty where it tells nothing, as in most virtual machines."""

    zones: list[ThermalZone] = Field(default_factory=list, description="all that the kernel has")
    cooling: dict[str, int] = Field(
        default_factory=dict,
        description="by device that cools a processor by slowing it down: its state; 0 is not at all",
    )
    clock_limits_mhz: dict[str, float] = Field(
        default_factory=dict, description="by cpufreq policy: the highest clock that is allowed at the moment"
    )
    alarms: list[str] = Field(default_factory=list, description="of sensors, that are on: too hot, too little voltage")


class MachineState(Record):
    """What the machine was doing; null where it does not say."""

    load_1min: float | None = Field(description="load average of one minute: threads that run or wait")
    busy_percent: float | None = Field(description="share of all processors that was busy just before")
    available_bytes: int = Field(description="memory that programs could still have")
    governor: str | None = Field(description="the policy by which the system chooses clock frequencies")
    frequency_mhz: float | None = Field(description="of the processor, averaged over its cores")
    temperature_c: float | None = Field(description="of the processor")
    affinity: list[int] | None = Field(description="processors that the measuring process may run on")
    throttled: int | None = Field(description="how often processor cores have throttled since the system started")
    gpus: list[GpuState] = Field(description="those that the engine may use")
    heat: Heat = Field(default_factory=Heat)


class Monitor(Record):
    """The machine just before and just after the timing, and its heat meanwhile."""

    before: MachineState
    after: MachineState
    during: list[Heat] = Field(
        default_factory=list, description="after the processes of each number, one after the other"
    )

    @property
    def heat(self) -> list[Heat]:
        """From before the measurement to after it."""
        return [self.before.heat, *self.during, self.after.heat]


class Scenario(Record):
    """How the engine was driven."""

    name: Literal["single-stream", "offline"] = Field(description="one inference at a time, or several streams of them")
    batch: int = Field(description="images an inference")
    shape: list[int] = Field(description="of the first input, the batch included")
    inputs: str = Field(description="where the input pool came from")
    pool: int = Field(description="different inputs, used in turn")
    inner: int = Field(description="inferences a sample, so that it lasts about 1 ms; percentiles are of such means")
    streams: PositiveInt = Field(description="processes at the same time, each with inputs of its own")
    processes: PositiveInt = Field(description="worker processes of a stream, one after the other")
    rounds: int = Field(description="turns of this engine, as many in each process")
    processors: list[list[int]] = Field(
        description="that the processes of each number were bound to; none: left to the system"
    )
    interleaved_with: list[str] = Field(description="the other engines of the run, which took turns with this one")
    failed: dict[str, str] = Field(
        default_factory=dict, description="engines that left the interleaving, and why: a crash, a hang, an error"
    )


class Summary(Record):
    """Statistics of one metric, in the unit that its name says."""

    n: int = Field(description="samples")
    min: float = Field(description="least")
    mean: float = Field(description="arithmetic mean")
    median: Bounds
    stdev: float = Field(description="standard deviation")
    cv: float = Field(description="coefficient of variation: the standard deviation over the mean")
    mad: float = Field(description="median absolute deviation from the median, unscaled")
    percentiles: dict[str, Bounds | None] = Field(description="p90, p95, p99 ...; null where the samples are too few")


class Gate(Record):
    """A limit on how much slower an engine may be, and what the interval says of it."""

    metric: str = Field(description="median, or a percentile such as p90")
    limit: float = Field(description="share by which it may be slower: 0.05 is 5%")
    ratio: Bounds = Field(description="of that metric, the candidate's over the baseline's")
    decision: Literal["PASS", "UNDECIDED", "REGRESSION"] = Field(
        description="REGRESSION: the whole interval is beyond the limit; PASS: none of it; UNDECIDED: it straddles it, "
        "or the machine's pace in two separate runs differed by enough to decide otherwise"
    )


class Comparison(Record):
    """This engine against the first of the same interleaved run."""

    baseline: str = Field(description="its path")
    ratio: Bounds = Field(
        description="how many times as long as the baseline it takes: geometric mean over processes of the ratios of "
        "turns that were taken one after the other; below 1 is faster"
    )
    gates: list[Gate] = Field(default_factory=list, description="of --fail-on, where no earlier run is compared with")


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
    precision: str = Field(description="fp32 or int8")
    gmacs_per_s: float = Field(description="10^9 multiply-accumulates a second, at the median latency")
    peak_gmacs_per_s: float | None = Field(
        description="what large convolutions of the same precision reached in the same engine and run; null: not known"
    )


class LatencyResult(Common):
    """The latency of one engine file."""

    kind: Literal["latency"] = "latency"
    device: str = Field(description="cpu or cuda")
    scenario: Scenario
    stats: dict[Literal["latency_ms"], Summary] = Field(min_length=1, description="milliseconds an inference")
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
    pace: Pace | None = Field(
        description="null on a GPU, with several streams, or where no reference network took part"
    )
    work: Work | None = Field(description="null for a file that does not tell it")
    comparison: Comparison | None = Field(description="null for the first engine of a run")

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


class EngineComparison(Record):
    """An engine in one run against an engine in an earlier run."""

    baseline: Artifact
    candidate: Artifact
    baseline_ms: Bounds = Field(description="median latency")
    candidate_ms: Bounds = Field(description="median latency")
    ratio: Bounds = Field(description="median latency of the candidate over the baseline's; below 1 is faster")
    pace: Bounds | None = Field(
        description="how many times as long the reference network took in the candidate's run; null: it did not run in "
        "both, or on different machines"
    )
    mann_whitney_p: float = Field(description="two-sided, on the medians of the processes as measured")
    different: dict[str, tuple[str, str]] = Field(description="conditions that were not the same: baseline, candidate")
    invalid: list[str] = Field(description="why a measurement is INVALID")
    gates: list[Gate] = Field(description="of --fail-on")


class RunComparison(Record):
    """One run of the harness against an earlier one; their rounds are not interleaved."""

    schema_version: Literal[3] = 3
    kind: Literal["comparison"] = "comparison"
    tool: Tool
    argv: list[str] = Field(description="the command line")
    engines: list[EngineComparison] = Field(description="those that are in both runs")
    unpaired: list[str] = Field(description="engines that are in only one of the runs")
    geomean: float = Field(description="geometric mean of the ratios of medians")
    warnings: list[str] = Field(description="what the machine was doing in either run that may explain a difference")


def load_latency(path: Path) -> list[LatencyResult]:
    """The latency results of a file that ``base.dump`` has written; at least one.

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
    """What tells one kind of result from another."""

    schema_version: Literal[3]
    kind: str
