"""The structure of a network that pruning needs, from one trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from compress.graph.executor import Executor
from compress.graph.groups import Coupling, groups_of
from compress.graph.linear_bn import LinearBN, linear_bns
from compress.graph.segments import Segment, segments_of
from compress.graph.tracing import Trace, trace


@dataclass(frozen=True)
class Structure:
    """The graph, the groups of channels, and the segments of a network.

    Attributes:
        linear_bns: the linear layers, with their batch norms, whose weights can be solved.
    """

    traced: Trace
    coupling: Coupling
    segments: tuple[Segment, ...]
    linear_bns: tuple[LinearBN, ...]

    @classmethod
    def of(cls, net: nn.Module, shape: Sequence[int]) -> Structure:
        """Find the structure of a network that takes images of ``shape`` (C, H, W).

        Raises:
            ModelError: it cannot be traced, or an operation is not known; the message names the layer and the line.
        """
        traced = trace(net, shape)
        coupling = groups_of(traced)
        return cls(traced, coupling, segments_of(traced, coupling), linear_bns(traced))

    def within(self, original: Structure, removed: Sequence[str], names: Mapping[str, str]) -> Structure:
        """The same structure, cut into the segments of the original network, without the removed ones.

        Chains that were separated by a removed block stay separate, so that the latency table still has them.

        Args:
            names: the original's name of each group.
        """
        mine = {old: new for new, old in names.items()}
        before = {segment.result: segment.source for segment in original.named(removed)}

        def source(node: str) -> str:
            return source(before[node]) if node in before else node

        left = tuple(
            replace(s, groups=tuple(mine[g] for g in s.groups if g in mine), source=source(s.source))
            for s in original.segments
            if s.name not in removed
        )
        return replace(self, segments=left)

    def executor(self) -> Executor:
        """The forward pass in steps."""
        return Executor(self.traced, self.segments)

    def named(self, removed: Sequence[str]) -> list[Segment]:
        """The segments with the given names."""
        return [segment for segment in self.segments if segment.name in removed]
