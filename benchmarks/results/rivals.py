"""The result files of ``benchmarks.rivals``: our networks compared with those of other tools."""

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
    """Time and memory of one quantization.

    Attributes:
        file: name of the engine file that was written.
        seconds: time from the float network on disk to the quantized one.
        export_seconds: time from there to the file; about 0 if the quantizer writes the file itself.
        start_bytes: resident memory at the start: interpreter and libraries.
        peak_bytes: peak resident memory until the quantized network was ready, libraries included.
    """

    file: str
    seconds: NonNegative
    export_seconds: NonNegative
    start_bytes: Count
    peak_bytes: Count


class QuantizedNetwork(Record):
    """One candidate: its file, the cost of each repeat, and its accuracy compared with the FP32 network's."""

    name: str = Field(description="name of the tool, or of our target")
    file: str = Field(description="path of the engine file")
    steps: tuple[Step, ...] = Field(description="one for each repeat; none for a file that existed already")
    sqnr_db: Finite | None = Field(
        description="signal-to-quantization-noise ratio of the logits, in dB; null where it is not finite"
    )
    accuracy: AccuracyResult = Field(description="paired with the FP32 network's")


class QuantizationFile(Record):
    """``quantization.json``: one network, quantized by several tools."""

    title: str = Field(description="the conditions of the comparison")
    host: Host
    warnings: list[str] = Field(description="states of the machine that may explain a time")
    rows: tuple[QuantizedNetwork, ...] = Field(description="one per candidate")
    schema_version: Literal[1] = 1


@dataclass(frozen=True)
class Rough:
    """The result of the first pass for one setting at one budget.

    Attributes:
        setting: setting of Torch-Pruning, such as ``local-l2-8``.
        budget: share of the MACs.
        ratio, macs: the pruning ratio, and the share of the MACs that was left; null: the budget was not reached.
        top1: 0 to 1, on some of the evaluation images, after the BN statistics were measured again.
    """

    setting: str
    budget: float
    ratio: float | None
    macs: float | None
    top1: float


class PrunedNetwork(Record):
    """One network: pruned by us, pruned by Torch-Pruning, or dense."""

    name: str = Field(description="name in the table")
    peer: bool = Field(description="made by Torch-Pruning")
    macs: NonNegative = Field(description="share of the dense network's multiply-accumulates")
    top1_fp32: Share = Field(description="share of the evaluation images, in FP32")
    top1_int8: Share = Field(description="share of the evaluation images, on the INT8 engine")
    change: Bounds = Field(description="top-1 in INT8 minus that of the dense network in FP32, paired")
    seconds: NonNegative | None = Field(
        description="time of pruning, without the search for the ratio; null if it is not known"
    )
    latency: LatencyResult = Field(description="latency of the INT8 engine, compared with the dense network's")


class PruningFile(Record):
    """``pruning.json``: one network, pruned by us and by Torch-Pruning to the same latencies."""

    host: Host
    rows: tuple[PrunedNetwork, ...] = Field(description="networks; the first is the dense one")
    first_pass: tuple[Rough, ...] = Field(description="everything that was tried to find the rival's best settings")
    schema_version: Literal[1] = 1


@dataclass(frozen=True)
class LossCell:
    """One group at one width: mean divergence from the dense float network's outputs, in nats an image.

    Attributes:
        group: of layers that keep the same channels.
        units, width: units of the group, and how many of them were kept.
        float_loss, int8_loss: loss of the pruned float network, and of the same network in INT8.
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
