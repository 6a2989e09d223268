"""The result files of ``benchmarks.latency`` (one engine) and ``benchmarks.compare`` (two runs)."""

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
    """State of a GPU; null: not reported."""

    temperature_c: float | None = Field(description="of the chip")
    clock_mhz: float | None = Field(description="of its multiprocessors")
    slowed_ms: float | None = Field(
        description="how long heat or power limits have slowed it since its driver was loaded"
    )
    processes: int | None = Field(description="number of processes that compute on it, while nothing is measured")


class ThermalZone(Record):
    """A temperature that the kernel watches."""

    name: str = Field(description="its folder in sysfs, and its type")
    temperature_c: float = Field(description="now")
    throttles_at_c: float | None = Field(
        description="lowest of its trip points at which devices are slowed down (passive or hot); null: it has none"
    )


class Heat(Record):
    """Heat as Linux reports it; empty if it reports none, as in most virtual machines."""

    zones: list[ThermalZone] = Field(default_factory=list, description="all thermal zones of the kernel")
    cooling: dict[str, int] = Field(
        default_factory=dict,
        description="state of each cooling device that slows a processor down; 0: not slowed",
    )
    clock_limits_mhz: dict[str, float] = Field(
        default_factory=dict, description="by cpufreq policy: the highest clock that is allowed now"
    )
    alarms: list[str] = Field(default_factory=list, description="sensor alarms that are on: too hot, voltage too low")


class MachineState(Record):
    """State of the machine; null: not reported."""

    load_1min: float | None = Field(description="load average of one minute: threads that run or wait")
    busy_percent: float | None = Field(description="percentage of all processors that was busy just before")
    available_bytes: int = Field(description="free memory that programs could use")
    governor: str | None = Field(description="the policy by which the system chooses clock frequencies")
    frequency_mhz: float | None = Field(description="of the processor, averaged over its cores")
    temperature_c: float | None = Field(description="of the processor")
    affinity: list[int] | None = Field(description="processors that the measuring process may run on")
    throttled: int | None = Field(description="how often processor cores have throttled since the system started")
    gpus: list[GpuState] = Field(description="those that the engine may use")
    heat: Heat = Field(default_factory=Heat)


class Monitor(Record):
    """State of the machine just before and just after the timing, and its heat during it."""

    before: MachineState
    after: MachineState
    during: list[Heat] = Field(
        default_factory=list, description="heat after the first, second, ... process of every engine"
    )

    @property
    def heat(self) -> list[Heat]:
        """From before the measurement to after it."""
        return [self.before.heat, *self.during, self.after.heat]


class Scenario(Record):
    """How the engine was driven."""

    name: Literal["single-stream", "offline"] = Field(
        description="single-stream: one inference at a time; offline: several streams"
    )
    batch: int = Field(description="images an inference")
    shape: list[int] = Field(description="of the first input, the batch included")
    inputs: str = Field(description="where the input pool came from")
    pool: int = Field(description="different inputs, used in turn")
    inner: int = Field(description="inferences a sample, so that it lasts about 1 ms; percentiles are of such means")
    streams: PositiveInt = Field(description="processes at the same time, each with inputs of its own")
    processes: PositiveInt = Field(description="worker processes of a stream, one after the other")
    rounds: int = Field(description="turns of this engine, as many in each process")
    processors: list[list[int]] = Field(
        description="processors that the first, second, ... process was bound to; none: not bound"
    )
    interleaved_with: list[str] = Field(description="the other engines of the run, which took turns with this one")
    failed: dict[str, str] = Field(
        default_factory=dict, description="engines that failed during the run, and why: a crash, a hang, an error"
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
    """A limit on how much slower an engine may be, and the decision about it."""

    metric: str = Field(description="median, or a percentile such as p90")
    limit: float = Field(description="share by which it may be slower: 0.05 is 5%")
    ratio: Bounds = Field(description="of that metric, the candidate's over the baseline's")
    decision: Literal["PASS", "UNDECIDED", "REGRESSION"] = Field(
        description="REGRESSION: the whole interval is above the limit; PASS: all of it is below; UNDECIDED: it "
        "contains the limit, or the machine's pace in two separate runs differed enough to change the decision"
    )


class Comparison(Record):
    """This engine against the first of the same interleaved run."""

    baseline: str = Field(description="its path")
    ratio: Bounds = Field(
        description="latency over the baseline's: geometric mean over processes of the ratios of consecutive turns; "
        "below 1 is faster"
    )
    gates: list[Gate] = Field(default_factory=list, description="limits of --fail-on, if no earlier run is given")


class Contention(Record):
    """How much of the machine other programs used while this engine was timed."""

    waited: float | None = Field(
        description="share of the time in which its threads were ready to run but waited for a processor; null: not "
        "reported by the system"
    )
    others: float = Field(description="average number of processors that other programs kept busy")


class Pace(Record):
    """How fast the processor was: the reference network, which is timed in every round of every run."""

    sha256: str = Field(description="of the network's file")
    version: str = Field(description="of the ONNX Runtime that ran it")
    rounds_ms: list[PositiveFloat] = Field(description="median of each of its turns; as many as the engine's rounds")


class Work(Record):
    """Arithmetic of the network, as its file states it."""

    macs: int = Field(description="multiply-accumulates of one image")
    precision: str = Field(description="fp32 or int8")
    gmacs_per_s: float = Field(description="10^9 multiply-accumulates a second, at the median latency")
    peak_gmacs_per_s: float | None = Field(
        description="that large convolutions of the same precision reached in the same engine and run; null: not known"
    )


class LatencyResult(Common):
    """The latency of one engine file."""

    kind: Literal["latency"] = "latency"
    device: str = Field(description="cpu or cuda")
    scenario: Scenario
    stats: dict[Literal["latency_ms"], Summary] = Field(min_length=1, description="milliseconds per inference")
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
    pace: Pace | None = Field(description="null on a GPU, with several streams, or without a reference network")
    work: Work | None = Field(description="null if the file does not state it")
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
        """Milliseconds per inference, in independent blocks: see ``intervals.blocks``."""
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
        "both, or the machines differ"
    )
    mann_whitney_p: float = Field(description="two-sided, on the medians of the processes as measured")
    different: dict[str, tuple[str, str]] = Field(description="conditions that were not the same: baseline, candidate")
    invalid: list[str] = Field(description="why a measurement is INVALID")
    gates: list[Gate] = Field(description="of --fail-on")


class RunComparison(Record):
    """A run of ``benchmarks.latency`` compared with an earlier one; their rounds are not interleaved."""

    schema_version: Literal[3] = 3
    kind: Literal["comparison"] = "comparison"
    tool: Tool
    argv: list[str] = Field(description="the command line")
    engines: list[EngineComparison] = Field(description="those that are in both runs")
    unpaired: list[str] = Field(description="engines that are in only one of the runs")
    geomean: float = Field(description="geometric mean of the ratios of medians")
    warnings: list[str] = Field(description="states of the machine, in either run, that may explain a difference")


def load_latency(path: Path) -> list[LatencyResult]:
    """The latency results of a file that ``base.dump`` has written; at least one.

    Raises:
        ConfigError: it is not such a file, or of another schema version.
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
