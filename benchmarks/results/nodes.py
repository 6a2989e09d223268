"""The node profile, which ``benchmarks.latency --export-profile`` writes: time by node and by layer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from benchmarks.results.base import Bounds, Common, Record


class NodeRecord(Record):
    """A node of the runtime's graph."""

    name: str = Field(description="the runtime's name of the node")
    op: str = Field(description="operator of the runtime")
    node: str | None = Field(description="node of the exported file that it computes; null if the runtime added it")
    layer: str | None = Field(
        description="layer of the model that made that node; empty: the model itself; null: not known"
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
    """A profile; the fields of ``Common`` are those of the latency measurement before it."""

    kind: Literal["node-profile"] = "node-profile"
    runs: int = Field(description="profiled runs, after the warm-up")
    statistic: Literal["median", "mean"] = Field(description="statistic over the runs of a node's time")
    latency_ms: Bounds = Field(description="median of the measurement, without profiling")
    profiled_ms: float = Field(description="median of the profiled runs, each timed as a whole")
    nodes_ms: float = Field(description="sum over the nodes of a run, by the same statistic")
    nodes: list[NodeRecord] = Field(description="nodes in the runtime's order")
    layers: list[LayerRecord] = Field(description="layers, longest first; empty if the file names none")
