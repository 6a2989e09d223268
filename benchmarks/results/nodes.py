"""Time by node and by layer; ``benchmarks.latency --export-profile`` writes it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from benchmarks.results.base import Bounds, Common, Record


class NodeRecord(Record):
    """A node of the graph that the runtime made."""

    name: str = Field(description="the runtime's")
    op: str = Field(description="operator of the runtime")
    node: str | None = Field(description="node of the exported file that it computes; null where the runtime added it")
    layer: str | None = Field(
        description="layer of the model that made that node; empty: the model itself; null: not told"
    )
    us: float = Field(description="microseconds a run")
    share: float = Field(description="of the sum over all nodes")


class LayerRecord(Record):
    """The nodes of one layer."""

    layer: str | None = Field(description="as in a node; null: the nodes without one")
    nodes: int = Field(description="how many")
    us: float = Field(description="microseconds a run, sum over the nodes")
    share: float = Field(description="of the sum over all nodes")


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
