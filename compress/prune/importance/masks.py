"""Gates: a factor on each unit, applied wherever the unit is read.

Removing a channel means that no layer reads it any more. So a gate of zero at all readers of a unit has the same effect
as cutting the unit out, whatever is between writer and reader, and the derivative of the loss with respect to a gate
of one estimates the cost of cutting. Masking and scoring both use these gates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compress.graph.groups import Coupling, Slot
from compress.graph.segments import Segment

Hook = Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]


@contextmanager
def gated(net: nn.Module, coupling: Coupling, gates: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """``net`` with the input of each reader multiplied by the gates of its channels, inside the block.

    Args:
        gates: by group name, (units,) or (N, units) for a batch of N; a group without gates is left alone.
    """
    parts: dict[str, list[_Part]] = defaultdict(list)
    for group in coupling:
        if group.name in gates:
            for slot in group.readers:
                parts[slot.layer].append(_Part.of(slot, gates[group.name]))
    handles = []
    try:
        for layer, its_parts in parts.items():
            handles.append(net.get_submodule(layer).register_forward_pre_hook(_hook(its_parts)))
        yield net
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def bypassed(net: nn.Module, removed: Collection[Segment]) -> Iterator[nn.Module]:
    """``net`` with the branches of removable segments giving zeros, inside the block: each of their layers does."""
    layers = [net.get_submodule(name) for segment in removed for name in segment.layers]
    handles = [layer.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output)) for layer in layers]
    try:
        yield net
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def masked(
    net: nn.Module, coupling: Coupling, kept: Mapping[str, Sequence[int]], removed: Collection[Segment] = ()
) -> Iterator[nn.Module]:
    """``net`` with what is cut set to zero: what the cut network must compute.

    Args:
        kept: unit indices by group name; a group that is not named keeps all.
        removed: segments whose branches go.
    """
    gates = {}
    for group in coupling:
        if group.name in kept:
            gates[group.name] = torch.zeros(group.units)
            gates[group.name][list(kept[group.name])] = 1
    with gated(net, coupling, gates), bypassed(net, removed):
        yield net


class _Part(NamedTuple):
    """One group's share of a reader's input: channel ``positions[i]`` belongs to unit ``units[i]``."""

    gate: Tensor
    units: Tensor
    positions: Tensor

    @classmethod
    def of(cls, slot: Slot, gate: Tensor) -> _Part:
        units = torch.arange(len(slot.channels)).repeat_interleave(len(slot.channels[0]))
        return cls(gate, units, torch.tensor(slot.channels).flatten())


def _hook(parts: Sequence[_Part]) -> Hook:
    def multiply(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = inputs
        factors = x.new_ones(*parts[0].gate.shape[:-1], x.shape[1])
        for gate, units, positions in parts:
            factors = factors.index_copy(-1, positions.to(x.device), gate.to(x)[..., units.to(x.device)])
        return (x * factors.reshape(*factors.shape, *[1] * (x.dim() - 2)), *rest)

    return multiply
