"""Find the channels that must be removed together.

The graph is traced, every channel gets a number, and the operations tie numbers: an addition ties its operands
position by position, a grouped convolution ties a whole group, a batch norm passes them on. Connected channels form a
**unit**, which is removed as a whole or not at all. Units that sit in the same layers form a **group**, whose width
pruning chooses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx, nn

from compress.graph.channels import ChannelMap, Ids, Op, Side, Value
from compress.graph.propagation import channels_after
from compress.graph.tracing import Trace, trace, where


@dataclass(frozen=True)
class Slot:
    """One side of a layer, and the positions of a group's units on it.

    Attributes:
        channels: (units, channels per unit) positions along that side's axis.
    """

    layer: str
    channels: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    """Units that sit in the same layers.

    Attributes:
        name: the layer that writes it last, such as ``layer1.0.conv1``.
        kind: ``stream`` if an addition ties its writers (a residual stream), else ``inner``.
        writers: layers with it on their output side.
        readers: layers with it on their input side. Removing a channel means that no reader reads it any more.
        norms: batch norms that it passes through.
    """

    name: str
    kind: Literal["stream", "inner"]
    writers: tuple[Slot, ...]
    readers: tuple[Slot, ...]
    norms: tuple[Slot, ...]

    @property
    def units(self) -> int:
        """The number of units to choose from."""
        return len(self.writers[0].channels)

    @property
    def unit(self) -> int:
        """Channels of a unit in the writer that names the group: 1, or the width of a ResNeXt's convolution group."""
        return len(self.writers[-1].channels[0])

    @property
    def width(self) -> int:
        """Channels in the writer that names the group."""
        return self.units * self.unit


@dataclass(frozen=True)
class Coupling:
    """The groups of a network, and what must stay.

    Attributes:
        groups: in the order of execution.
        frozen: layers with output channels that must stay, and why.
        layers: every layer that writes or normalises channels.
    """

    groups: tuple[Group, ...]
    frozen: Mapping[str, str]
    layers: tuple[str, ...]

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __getitem__(self, name: str) -> Group:
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)


def couple(net: nn.Module, shape: Sequence[int]) -> Coupling:
    """Find the groups of a network.

    Args:
        net: a network that takes one image batch.
        shape: of one image (C, H, W).

    Raises:
        ModelError: it cannot be traced; the message names the line.

    >>> from compress.models.registry import build
    >>> found = couple(build("cifar_resnet20_b"), (3, 32, 32))
    >>> [slot.layer for slot in found["layer2.2.conv2"].writers]
    ['layer2.0.conv2', 'layer2.0.shortcut.0', 'layer2.1.conv2', 'layer2.2.conv2']
    """
    return groups_of(trace(net, shape))


def groups_of(traced: Trace) -> Coupling:
    """``couple`` for a network that is already traced."""
    channels = _channels_of(traced)
    labels = _components(channels)
    reasons = {label: reason for ids, reason in reversed(channels.frozen) for label in labels[ids].tolist()}
    in_sums = {label for ids in channels.sums for label in labels[ids].tolist()}

    # Where each unit sits: unit -> side of a layer -> positions, all in the order of execution.
    sites: dict[int, dict[tuple[str, Side], list[int]]] = defaultdict(lambda: defaultdict(list))
    frozen: dict[str, str] = {}
    for place, ids in channels.places.items():
        for position, label in enumerate(labels[ids].tolist()):
            if label not in reasons:
                sites[label][place].append(position)
            elif place[1] == "out":
                frozen.setdefault(place[0], reasons[label])

    alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for label, sides in sites.items():
        alike[label in in_sums, *((place, len(positions)) for place, positions in sides.items())].append(label)
    groups: dict[str, Group] = {}
    for labels_alike in alike.values():
        group = _group([sites[label] for label in labels_alike], labels_alike[0] in in_sums, taken=groups)
        groups[group.name] = group
    layers = tuple(dict.fromkeys(layer for layer, side in channels.places if side != "in"))
    return Coupling(tuple(groups.values()), frozen, layers)


def _channels_of(traced: Trace) -> ChannelMap:
    channels = ChannelMap()
    values: dict[fx.Node, Value] = {}
    for node in traced.graph.nodes:
        inputs = [values[n] for n in node.all_input_nodes if n in values]
        if node.op == "output":
            for value in inputs:
                if value.ids is not None:
                    channels.freeze(value.ids, "the network's output")
        elif node in traced.shapes:
            size = traced.shapes[node]
            ids: Ids | None = None
            if node.op == "placeholder":
                ids = channels.fixed(size[1], "the network's input")
            elif any(value.ids is not None for value in inputs):
                module = traced.modules[str(node.target)] if node.op == "call_module" else None
                op = Op(node, module, values, size)
                ids = channels_after(op, channels)
                assert len(size) < 2 or len(ids) == size[1], where(node)
            values[node] = Value(ids, size)
    return channels


def _components(channels: ChannelMap) -> Ids:
    """A label for each channel; tied channels have the same label."""
    ends = [np.concatenate([pair[k] for pair in channels.ties] or [channels.fresh(0)]) for k in (0, 1)]
    links = coo_matrix((np.ones(len(ends[0]), dtype=np.int8), (ends[0], ends[1])), shape=(channels.size, channels.size))
    labels: Ids = connected_components(links, directed=False)[1].astype(np.int64)
    return labels


def _group(units: Sequence[Mapping[tuple[str, Side], list[int]]], summed: bool, taken: Mapping[str, Group]) -> Group:
    def slots(wanted: Side) -> tuple[Slot, ...]:
        places = [place for place in units[0] if place[1] == wanted]
        return tuple(Slot(place[0], tuple(tuple(unit[place]) for unit in units)) for place in places)

    writers = slots("out")
    name, count = writers[-1].layer, 1
    while name in taken:  # a concatenation or padding can split a layer's output into several groups
        count += 1
        name = f"{writers[-1].layer}#{count}"
    return Group(name, "stream" if summed else "inner", writers, slots("in"), slots("norm"))


def kept_rows(net: nn.Module, coupling: Coupling, kept: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """By layer that reads a cut group: which of its inputs (channels * kernel) stay, as a mask."""
    masks: dict[str, Tensor] = {}
    for group in coupling:
        gone = set(range(group.units)) - set(kept.get(group.name, range(group.units)))
        for slot in group.readers if gone else ():
            module = net.get_submodule(slot.layer)
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
                inputs, taps = module.weight.shape[1], module.weight[0, 0].numel()
                mask = masks.setdefault(slot.layer, torch.ones(inputs * taps, dtype=torch.bool)).view(inputs, taps)
                mask[[position for unit in gone for position in slot.channels[unit]]] = False
    return masks
