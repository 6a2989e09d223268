"""The result files ``summary.json`` of ``benchmarks.summary`` and ``pareto.json`` of ``benchmarks.pareto``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from benchmarks.results.accuracy import AccuracyResult
from benchmarks.results.base import Record, Verdict
from benchmarks.results.fidelity import FidelityResult
from benchmarks.results.latency import LatencyResult
from compress.engines.metadata import Metadata
from compress.graph.plan import WidthPlan
from compress.parse import Count, Finite, Positive, Share

WHOLE = "no layer in float"  # the end of a network's name; see ``benchmarks.evaluation.summary``


class MeasuredNetwork(Record):
    """One network of a run: its name in the table, its main numbers, and the full results."""

    name: str = Field(description="name in the table, such as 'pruned INT8'")
    arch: str = Field("", description="architecture; empty in files before version 2")
    precision: str = Field("", description="fp32 or int8; empty in files before version 2")
    target: str = Field("", description="target of an INT8 file; empty for a float file, and before version 2")
    params: Count = Field(description="parameters")
    macs: Count = Field(description="multiply-accumulates of one image")
    bytes: Count = Field(description="size of the file")
    top1: Share | None = Field(description="top-1 accuracy, as a share of the images; null for a backbone")
    latency_ms: Positive = Field(description="median latency")
    predicted_ms: Finite | None = Field(
        None, description="latency that the latency table predicts; null for a float network"
    )
    accuracy: AccuracyResult | None = Field(description="null for a backbone, or without labelled images")
    fidelity: FidelityResult | None = Field(
        None, description="of a backbone: its outputs compared with those of the first network; null for that one"
    )
    latency: LatencyResult

    @classmethod
    def of(
        cls,
        name: str,
        metadata: Metadata,
        accuracy: AccuracyResult | None,
        latency: LatencyResult,
        predicted_ms: float | None = None,
        fidelity: FidelityResult | None = None,
    ) -> MeasuredNetwork:
        """Make the record from the file's metadata and the measurements."""
        return cls(
            name=name,
            arch=metadata.arch,
            precision=metadata.precision,
            target=metadata.target,
            params=metadata.params,
            macs=metadata.macs,
            bytes=latency.artifact.bytes,
            top1=accuracy.top1.value.value if accuracy else None,
            latency_ms=latency.stats["latency_ms"].median.value,
            predicted_ms=predicted_ms,
            accuracy=accuracy,
            fidelity=fidelity,
            latency=latency,
        )

    @property
    def int8(self) -> bool:
        return self.precision == "int8" if self.precision else "INT8" in self.name

    @property
    def dense(self) -> bool:
        return self.name.startswith("dense")

    @property
    def quality(self) -> float | None:
        """What networks of one measurement are ordered by: top-1 accuracy, or the SQNR of a backbone's outputs in dB.

        None where it was not measured, and for the first network of a backbone, which the others are compared with.
        """
        if self.fidelity is None:
            return self.top1
        return math.inf if self.fidelity.sqnr_db is None else self.fidelity.sqnr_db

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdict of each measurement."""
        return [result.verdict for result in (self.accuracy, self.fidelity, self.latency) if result is not None]

    @property
    def valid(self) -> bool:
        return all(verdict.status == "VALID" for verdict in self.verdicts)

    @property
    def label(self) -> str:
        """The name, with a mark if a measurement is INVALID."""
        return self.name if self.valid else f"{self.name} (INVALID)"

    @property
    def for_comparison(self) -> bool:
        """Whether this file does not ship: it has no layers in float, and shows what the float layers cost."""
        return self.name.endswith(WHOLE)


def on_front(networks: Iterable[MeasuredNetwork]) -> list[MeasuredNetwork]:
    """The networks that no other one beats, fastest first: each is more accurate than all that are faster.

    Those whose ``quality`` is None are left out, and those whose measurement is INVALID.
    """
    found: list[MeasuredNetwork] = []
    best = -math.inf
    known = [(one.latency_ms, one.quality, one) for one in networks if one.quality is not None and one.valid]
    for _, quality, network in sorted(known, key=lambda one: (one[0], -one[1])):
        if quality > best:
            found.append(network)
            best = quality
    return found


class NetworksFile(Record):
    """What ``summary.json`` and ``pareto.json`` share."""

    title: str = Field(description="the conditions of the measurement")
    rows: Annotated[tuple[MeasuredNetwork, ...], Field(min_length=1)] = Field(
        description="the networks; the others are compared with the first, the dense one in float"
    )
    schema_version: Literal[1] = 1


class ParetoFile(NetworksFile):
    """``pareto.json``: the dense networks, and the pruned ones at several budgets, in INT8 and in float."""

    left_out: tuple[str, ...] = Field((), description="points that were not measured, each with the reason")


class SummaryFile(NetworksFile):
    """``summary.json``: the networks of a run, before and after."""

    plan: WidthPlan | None = Field(None, description="plan of the pruned networks; null if they were not pruned")
