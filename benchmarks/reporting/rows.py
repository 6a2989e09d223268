"""One measured network as a row of a table, and what there is to say about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import Field

from benchmarks.results.schema import AccuracyResult, LatencyResult, Verdict
from benchmarks.results.tables import interval, percent, points, speedup
from compress.engines.base import open_engine
from compress.engines.metadata import Metadata
from compress.errors import EngineError
from compress.parse import Count, Finite, Positive, Share
from compress.prune.allocation.plan import WidthPlan


class Judged(Protocol):
    """A network with its measurements, as they were just made or as a file tells them."""

    @property
    def name(self) -> str: ...
    @property
    def accuracy(self) -> AccuracyResult | None: ...
    @property
    def latency(self) -> LatencyResult: ...


HEADER = ["network", "top-1 %", "change, points", "params M", "MACs M", "file MB", "latency ms", "speed-up"]


@dataclass(frozen=True)
class Row:
    """One network of the summary: its name in the table, and what was found.

    Attributes:
        accuracy: None for a backbone.
    """

    name: str
    metadata: Metadata
    accuracy: AccuracyResult | None
    latency: LatencyResult

    def cells(self) -> list[str]:
        paired, compared = self.accuracy and self.accuracy.paired, self.latency.comparison
        return [
            self.name,
            percent(self.accuracy.top1.value) if self.accuracy else "",
            points(paired.difference) if paired else "",
            f"{self.metadata.params / 1e6:.3f}",
            f"{self.metadata.macs / 1e6:.1f}",
            f"{self.latency.artifact.bytes / 1e6:.2f}",
            interval(self.latency.stats["latency_ms"].median, 3),
            speedup(compared.ratio if compared else None),
        ]

    @property
    def verdicts(self) -> list[Verdict]:
        """Whether each of its measurements may be used."""
        return [result.verdict for result in (self.accuracy, self.latency) if result is not None]

    def record(self) -> dict[str, object]:
        """The row for ``summary.json``: plain numbers, and the full results that they come from."""
        return {
            "name": self.name,
            "params": self.metadata.params,
            "macs": self.metadata.macs,
            "bytes": self.latency.artifact.bytes,
            "top1": self.accuracy.top1.value.value if self.accuracy else None,
            "latency_ms": self.latency.stats["latency_ms"].median.value,
            "accuracy": self.accuracy.model_dump(mode="json") if self.accuracy else None,
            "latency": self.latency.model_dump(mode="json"),
        }


@dataclass(frozen=True)
class Record:
    """A row in ``summary.json`` or ``pareto.json``: what ``Row.record`` gives."""

    name: str
    params: Count
    macs: Count
    bytes: Count
    top1: Share | None
    latency_ms: Positive
    accuracy: AccuracyResult | None
    latency: LatencyResult
    predicted_ms: Finite | None = None


@dataclass(frozen=True)
class MeasuredFile:
    """``summary.json`` or ``pareto.json``.

    Attributes:
        plan: by which the networks of a summary were pruned.
    """

    title: str
    rows: Annotated[tuple[Record, ...], Field(min_length=1)]
    plan: WidthPlan | None = None
    schema_version: Literal[1] = 1


def remarks(rows: Sequence[Row]) -> list[str]:
    """Warnings and reasons of every result, each once."""
    said = [
        f"{row.name}: {text}"
        for row in rows
        for text in [
            *(reason for verdict in row.verdicts for reason in verdict.reasons),
            *row.latency.warnings,
        ]
    ]
    return list(dict.fromkeys(said))


def metadata_of(path: Path) -> Metadata:
    """What an exported file or an engine says about itself.

    Raises:
        EngineError: nothing, or it does not open.
    """
    with open_engine(path) as engine:
        if engine.metadata is None:
            raise EngineError(f"{path} carries no metadata", remedy="run `python -m compress export` again")
        return engine.metadata
