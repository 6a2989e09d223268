"""The record of channels that is filled while the nodes of a graph are visited in the order of execution.

Each channel has a number; a tensor carries an array of numbers, one for each index of dimension 1. The same number
in two tensors means the same channel. The record says which channels are tied, which must stay, and where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import fx, nn

from compress.errors import ModelError
from compress.graph.tracing import where

Ids = npt.NDArray[np.int64]
Side = Literal["in", "out", "norm"]


@dataclass
class ChannelMap:
    """The channel record; the propagation rules fill it, one operation after another.

    Attributes:
        size: number of channels made so far.
        ties: pairs of equally long arrays; channels at the same position go together.
        sums: channels that an addition has tied.
        frozen: channels that must stay, with the reason.
        places: the channels on each side of each layer, in the order of execution.
    """

    size: int = 0
    ties: list[tuple[Ids, Ids]] = field(default_factory=list)
    sums: list[Ids] = field(default_factory=list)
    frozen: list[tuple[Ids, str]] = field(default_factory=list)
    places: dict[tuple[str, Side], Ids] = field(default_factory=dict)

    def fresh(self, count: int) -> Ids:
        self.size += count
        return np.arange(self.size - count, self.size, dtype=np.int64)

    def fixed(self, count: int, reason: str) -> Ids:
        """Make new channels that must stay."""
        ids = self.fresh(count)
        self.freeze(ids, reason)
        return ids

    def tie(self, left: Ids, right: Ids) -> None:
        self.ties.append((left, right))

    def freeze(self, ids: Ids, reason: str) -> None:
        self.frozen.append((ids, reason))

    def place(self, layer: str, side: Side, ids: Ids) -> None:
        """Record that ``ids`` are on a side of a layer; a second call ties its channels to those of the first."""
        first = self.places.setdefault((layer, side), ids)
        if first is not ids:
            self.tie(first, ids)

    def written(self, layer: str, count: int) -> Ids:
        """The output channels of a layer: new ones at its first call."""
        if (layer, "out") not in self.places:
            self.places[layer, "out"] = self.fresh(count)
        return self.places[layer, "out"]


class Value(NamedTuple):
    """A tensor in the graph; ``ids`` is None if it does not depend on the input (a parameter, a buffer)."""

    ids: Ids | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Op:
    """An operation whose result is a tensor and which reads at least one tensor that depends on the input."""

    node: fx.Node
    module: nn.Module | None
    values: Mapping[fx.Node, Value]
    shape: tuple[int, ...]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument of a call (position 0 is the tensor), or a layer's attribute if the operation is a module."""
        if self.module is not None:
            return getattr(self.module, name, default)
        if name in self.node.kwargs:
            return self.node.kwargs[name]
        return self.node.args[position] if len(self.node.args) > position else default

    @property
    def operands(self) -> list[Value]:
        """Every tensor that the operation reads, without repetition."""
        return [self.values[n] for n in self.node.all_input_nodes if n in self.values]

    @property
    def source(self) -> tuple[Ids, tuple[int, ...]]:
        """Channels and shape of the one tensor that the operation works on."""
        (value, *others) = [v for v in self.operands if v.ids is not None]
        if others:
            raise self.error("it combines several tensors")
        assert value.ids is not None
        return value.ids, value.shape

    def error(self, reason: str) -> ModelError:
        return ModelError(f"the channels cannot be followed through {where(self.node)}: {reason}")
