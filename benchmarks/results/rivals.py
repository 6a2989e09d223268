"""Our networks beside those of other tools: what the commands of ``benchmarks.rivals`` write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from benchmarks.results.accuracy import AccuracyResult
from benchmarks.results.base import Bounds, Host, Record
from benchmarks.results.latency import LatencyResult
from compress.parse import Count, Finite, NonNegative, Share


@dataclass(frozen=True)
class Step:
    """What one quantization took.

    Attributes:
        file: name of the engine file that was written.
        seconds: from the float network on disk to the quantized one.
        export_seconds: from there to the file; about 0 where the quantizer writes it itself.
        start_bytes: resident memory when the clock started: interpreter and libraries.
        peak_bytes: resident memory at its highest until the clock stopped, libraries included.
    """

    file: str
    seconds: NonNegative
    export_seconds: NonNegative
    start_bytes: Count
    peak_bytes: Count


class QuantizedNetwork(Record):
    """One candidate: its file, every time that it was made, and how its answers compare with the FP32 network's."""

    name: str = Field(description="of the tool, or of our target")
    file: str = Field(description="path of the engine file")
    steps: tuple[Step, ...] = Field(description="one for each repeat; none for a file that was given as it is")
    sqnr_db: Finite | None = Field(
        description="signal-to-quantization-noise ratio of the logits, in dB; null where it is not finite"
    )
    accuracy: AccuracyResult = Field(description="paired with the FP32 network's")


class QuantizationFile(Record):
    """``quantization.json``: one network, quantized by several tools."""

    title: str = Field(description="what was evaluated on what")
    host: Host
    warnings: list[str] = Field(description="what the machine was doing that may explain a time")
    rows: tuple[QuantizedNetwork, ...] = Field(description="one a candidate")
    schema_version: Literal[1] = 1


@dataclass(frozen=True)
class Rough:
    """What the first pass says of a setting at a budget.

    Attributes:
        setting: of Torch-Pruning, such as ``local-l2-8``.
        budget: share of the MACs.
        ratio, macs: what was asked of the pruner, and the share of the MACs that it left; none: out of its reach.
        top1: 0 to 1, on some of the evaluation images, after BN was measured anew on some of the sample.
    """

    setting: str
    budget: float
    ratio: float | None
    macs: float | None
    top1: float


class PrunedNetwork(Record):
    """One network, pruned by us or by Torch-Pruning, or the dense one."""

    name: str = Field(description="in the table")
    peer: bool = Field(description="made by Torch-Pruning")
    macs: NonNegative = Field(description="share of the dense network's multiply-accumulates")
    top1_fp32: Share = Field(description="share of the evaluation images, in FP32")
    top1_int8: Share = Field(description="share of the evaluation images, on the INT8 engine")
    change: Bounds = Field(description="top-1 in INT8 minus that of the dense network in FP32, paired")
    seconds: NonNegative | None = Field(
        description="that pruning took, the search for the ratio not counted; null where that is not known"
    )
    latency: LatencyResult = Field(description="of the INT8 engine, against the dense network's")


class PruningFile(Record):
    """``pruning.json``: one network, pruned by us and by Torch-Pruning to the same latencies."""

    host: Host
    rows: tuple[PrunedNetwork, ...] = Field(description="the first is the dense one")
    first_pass: tuple[Rough, ...] = Field(description="all that was tried to find the peer's best settings")
    schema_version: Literal[1] = 1


@dataclass(frozen=True)
class LossCell:
    """One group at one width: mean divergence from the dense float network's outputs, in nats an image.

    Attributes:
        group: of layers that keep the same channels.
        units, width: of the group, and those that were kept.
        float_loss, int8_loss: of the float network that is left, and of the same one in INT8.
    """

    group: str
    units: int
    width: int
    float_loss: float
    int8_loss: float


class Int8LossesFile(Record):
    """What ``benchmarks.rivals.int8_losses --json`` writes."""

    dense: float = Field(description="loss of the uncut network in INT8, nats an image")
    cells: tuple[LossCell, ...] = Field(description="a seeded sample of the cuts")
