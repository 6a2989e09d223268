"""Which tensors are INT8, and in what form, for the engine that will run them.

Calibration yields real ranges on graph edges; a target's ``Profile`` turns them into quantizers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, fx, nn

from compress.frontend.ops import name_of
from compress.models.cifar import SelectPad
from compress.quantize.graph import called, layer_of, operation, trace
from compress.quantize.grid import Grid
from compress.quantize.quantizer import TINY, WEIGHT_HIGH, Activation, Quantizers, Weight
from compress.quantize.rounding import fitting_reach
from compress.targets import Profile, profile

_BIAS_HIGH = 2.0**28  # int32, less a factor of 8 for scales that training makes smaller


@dataclass(frozen=True)
class Range:
    """The calibrated range (low, high) of a tensor; ``source`` and ``user`` as in ``Activation``."""

    source: str
    user: str | None
    low: float
    high: float


Place = TypeVar("Place", Range, Activation)


def place(net: nn.Module, target: str, ranges: Sequence[Range], magnitudes: Mapping[str, Tensor]) -> Quantizers:
    """The quantizers that ``target`` wants.

    Args:
        net: BN-folded.
        ranges: of activations.
        magnitudes: for each quantized layer, the largest |w| to represent in each output channel, shape (C_out,).
    """
    rule = profile(target)
    graph = trace(net)
    fused = _direct_inputs(graph) if rule.add == "skip" else set()
    placed = list(_without(fused, graph, _share_with_moves(graph, ranges)))
    activations = tuple(_activation(r, Grid.of(rule)) for r in _clip_below_relu(graph, placed))
    steps = _input_steps(graph, activations)
    weights = tuple(
        _weight(layer, net.get_submodule(layer), magnitude, steps.get(layer), rule)
        for layer, magnitude in magnitudes.items()
    )
    kinds = {"Conv2d": nn.Conv2d, "Linear": nn.Linear}
    kept = tuple(kinds[name] for name in rule.keep_float)
    floats = {layer for layer in magnitudes if isinstance(net.get_submodule(layer), kept)}
    return leave_float(net, Quantizers(target, activations, weights), floats)


def leave_float(net: nn.Module, quantizers: Quantizers, layers: Collection[str]) -> Quantizers:
    """The quantizers less those of some layers: of their weights, and of what flows into them and nowhere else.

    Where an integer convolution must have a quantized result, what flows from one layer to another stays quantized.

    Args:
        net: that the quantizers were made for.
        layers: names of convolutions or fully connected layers.
    """
    graph, free = trace(net), profile(quantizers.target).float_output
    dropped = set[tuple[str, str]]()
    for source, user, readers in _feeds(graph, quantizers.activations):
        own = all(reader.target in layers for reader in readers)
        if own and (free or source.op == "placeholder"):
            dropped.add((source.name, user.name))
    return _select(graph, quantizers, dropped, [w for w in quantizers.weights if w.layer not in layers])


def quantize_only(net: nn.Module, quantizers: Quantizers, layer: str) -> Quantizers:
    """The quantizers of one layer's weight and input."""
    graph = trace(net)
    feeds = list(_feeds(graph, quantizers.activations))
    kept = {(s.name, u.name) for s, u, readers in feeds if any(reader.target == layer for reader in readers)}
    dropped = {(s.name, u.name) for s in graph.graph.nodes for u in s.users} - kept
    return _select(graph, quantizers, dropped, [w for w in quantizers.weights if w.layer == layer])


def _select(
    graph: fx.GraphModule, quantizers: Quantizers, dropped: Collection[tuple[str, str]], weights: Iterable[Weight]
) -> Quantizers:
    activations = tuple(_without(dropped, graph, quantizers.activations))
    return replace(quantizers, activations=activations, weights=tuple(weights))


def _feeds(
    graph: fx.GraphModule, activations: Iterable[Activation]
) -> Iterator[tuple[fx.Node, fx.Node, list[fx.Node]]]:
    """(source, user, readers) for each quantized edge: the nodes that compute on it, beyond what only moves values."""
    nodes = {node.name: node for node in graph.graph.nodes}

    def readers(node: fx.Node) -> list[fx.Node]:
        if not _moves(graph, node):
            return [node]
        return [reader for user in node.users for reader in readers(user)]

    for a in activations:
        for user in _readers(nodes, a):
            yield nodes[a.source], user, readers(user)


def _moves(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node passes integers on as they are."""
    row = operation(graph, node)
    return row is not None and row.moves


def _input_steps(graph: fx.GraphModule, activations: Sequence[Activation]) -> dict[str, float]:
    """The scale of what each layer reads; the finest where it is called more than once."""
    nodes = {node.name: node for node in graph.graph.nodes}
    edges = {(a.source, user.name): a.scale for a in activations for user in _readers(nodes, a)}
    steps: dict[str, float] = {}
    for source, user, readers in _feeds(graph, activations):
        for reader in readers:
            scale = edges[source.name, user.name]
            steps[str(reader.target)] = min(scale, steps.get(str(reader.target), scale))
    return steps


def _activation(r: Range, grid: Grid) -> Activation:
    scale, zero_point = grid.fit(r.low, r.high)
    return Activation(r.source, r.user, scale, zero_point, low=grid.least, high=grid.most)


def _weight(name: str, layer: nn.Module, magnitude: Tensor, step: float | None, rule: Profile) -> Weight:
    """One scale a channel, none so small that the bias overflows.

    Engines hold the bias as int32 in steps of (input scale * weight scale). A channel whose weights are (nearly) all
    zero, as pruning and folded BNs leave them, would make that step so small that its bias wraps around.

    Args:
        magnitude: (C_out,), the largest |w|.
        step: the scale of the layer's input; None where that is float.
    """
    assert isinstance(layer.weight, Tensor)
    depthwise = isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels == layer.out_channels
    pairs_fit = rule.pair_sums == "int16" and not depthwise  # whose kernels add no pairs
    reach = fitting_reach(layer.weight.detach(), magnitude) if pairs_fit else magnitude
    if rule.weights == "per_tensor":
        reach = reach.max().expand_as(reach)
    floor = torch.full_like(magnitude, TINY)
    if isinstance(layer.bias, Tensor) and step is not None:
        floor = torch.maximum(floor, layer.bias.detach().abs() / (step * _BIAS_HIGH))
    return Weight(name, tuple(torch.maximum(reach / WEIGHT_HIGH, floor).tolist()), pairs_fit)


def _share_with_moves(graph: fx.GraphModule, ranges: Sequence[Range]) -> list[Range]:
    """Give one quantizer to a tensor whose only float readers are option A shortcuts.

    These copy values, so integers serve them as well; a float copy would keep the add before them in float.
    """
    shared: dict[tuple[str, str | None], Range] = {}
    for node in graph.graph.nodes:
        own = [r for r in ranges if r.source == node.name]
        quantized = {r.user for r in own}
        rest = [user for user in node.users if user.name not in quantized]
        if (
            own
            and rest
            and None not in quantized
            and all(isinstance(layer_of(graph, user), SelectPad) for user in rest)
        ):
            own = [Range(node.name, None, min(r.low for r in own), max(r.high for r in own))]
        shared.update({(r.source, r.user): r for r in own})
    return list(shared.values())


def _clip_below_relu(graph: fx.GraphModule, ranges: Sequence[Range]) -> list[Range]:
    """Cut off what a ReLU after an add loses anyway, so that the steps get finer where it matters.

    In relu(a + b) with b <= high_b, any a < -high_b gives 0, as a = -high_b does. Only a quantized b has a largest
    value.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    on_edge = {(r.source, user.name): r for r in ranges for user in _readers(nodes, r)}

    def highest(node: fx.Node, user: fx.Node) -> float:
        while (node.name, user.name) not in on_edge and isinstance(layer_of(graph, node), nn.MaxPool2d):
            node, user = node.all_input_nodes[0], node
        r = on_edge.get((node.name, user.name))
        return r.high if r else float("inf")

    def clip(r: Range) -> Range:
        users = _readers(nodes, r)
        if (
            len(users) != 1
            or not is_add(graph, users[0])
            or not all(_is_relu(graph, after) for after in users[0].users)
        ):
            return r
        others = [node for node in users[0].all_input_nodes if node.name != r.source]
        return replace(r, low=max(r.low, -highest(others[0], users[0])))

    return [clip(r) for r in ranges]


def _readers(nodes: Mapping[str, fx.Node], place: Range | Activation) -> list[fx.Node]:
    """The nodes that see a tensor quantized."""
    return [nodes[place.user]] if place.user else list(nodes[place.source].users)


def _is_relu(graph: fx.GraphModule, node: fx.Node) -> bool:
    return name_of(node, called(graph, node)) == "relu"


def _direct_inputs(graph: fx.GraphModule) -> set[tuple[str, str]]:
    """(convolution, add) for each residual add: the edge that the engine fuses.

    Where both inputs are convolutions (a block with a projection), the longer way from the input is the main path.
    """
    depth: dict[fx.Node, int] = {}
    edges = set()
    for node in graph.graph.nodes:
        depth[node] = 1 + max((depth[source] for source in node.all_input_nodes), default=0)
        if is_add(graph, node):
            convs = [source for source in node.all_input_nodes if isinstance(layer_of(graph, source), nn.Conv2d)]
            if convs:
                edges.add((max(convs, key=depth.__getitem__).name, node.name))
    return edges


def _without(edges: Collection[tuple[str, str]], graph: fx.GraphModule, places: Iterable[Place]) -> Iterator[Place]:
    """The ranges or quantizers, less those on ``edges``; a tensor with other users stays quantized for these."""
    users = {node.name: [user.name for user in node.users] for node in graph.graph.nodes}
    for place in places:
        affected = [place.user] if place.user else users[place.source]
        kept = [user for user in affected if (place.source, user) not in edges]
        if kept == affected:
            yield place
        else:
            yield from (replace(place, user=user) for user in kept)


def is_add(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node adds two tensors: ``a + b``, ``a += b``, ``torch.add``, ``a.add(b)``.

    >>> graph = fx.symbolic_trace(lambda x: x.relu() + x)
    >>> [is_add(graph, node) for node in graph.graph.nodes]
    [False, False, True, False]
    """
    row = operation(graph, node)
    return row is not None and row.adds and len(node.all_input_nodes) == 2
