"""Cut a network's graph into segments, whose latencies add up: residual blocks, and the chains between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from torch import fx, nn

from compress.frontend.ops import Operation, keeps_zero, name_of, operation_of
from compress.graph.groups import Coupling
from compress.graph.tracing import Trace, trace
from compress.models.layers import CHANNEL_LAYERS


@dataclass(frozen=True)
class Segment:
    """A piece of the network with one tensor in and one tensor out.

    Attributes:
        name: for a residual block the longest common module prefix of its layers (``layer1.0``), or the node of its
            addition; for any other segment its first layer.
        layers: the layers inside that have channels to cut, in the order of execution.
        groups: the groups that sit in those layers, on either side; the segment's cost depends on their widths.
        source: graph node (``compress.graph.tracing.trace``) of the tensor that enters it.
        result: graph node of the tensor that leaves it; for a block its addition, or the activation that follows.
        removable: a residual block whose shortcut is the identity: without its branch, the block passes on its source.
    """

    name: str
    layers: tuple[str, ...]
    groups: tuple[str, ...]
    source: str
    result: str
    removable: bool


def segments(net: nn.Module, coupling: Coupling, shape: Sequence[int]) -> tuple[Segment, ...]:
    """Every layer with weights is in exactly one segment; segments come in the order of execution.

    A residual block is what lies between an addition of several tensors and the nearest node through which all paths
    from the input to that addition pass (its immediate dominator). Of nested blocks the innermost count. All other
    layers form chains as long as each node has one operand and one reader.

    Args:
        coupling: of the same network.
        shape: of one image (C, H, W).

    Raises:
        ModelError: see ``trace``.

    >>> from compress.models.registry import build
    >>> from compress.graph.groups import couple
    >>> net = build("cifar_resnet20_b")
    >>> found = segments(net, couple(net, (3, 32, 32)), (3, 32, 32))
    >>> [(s.name, s.removable) for s in found][:5]
    [('conv1', False), ('layer1.0', True), ('layer1.1', True), ('layer1.2', True), ('layer2.0', False)]
    """
    return segments_of(trace(net, shape), coupling)


def segments_of(traced: Trace, coupling: Coupling) -> tuple[Segment, ...]:
    """``segments`` for a network that is already traced."""
    flow = _Flow(traced)
    taken: set[str] = set()
    drafts: list[tuple[fx.Node | None, Segment]] = []  # with the addition of a block
    inside: set[fx.Node] = set()
    for source, addition, region in _blocks(flow):
        layers = flow.layers(region)
        result = _result(flow, addition)
        removable = not taken.intersection(layers) and _removable(flow, source, addition, region)
        fresh = tuple(layer for layer in layers if layer not in taken)
        inside |= {*region, result}
        if fresh:
            taken.update(fresh)
            drafts.append((addition, Segment(_prefix(fresh), fresh, (), source.name, result.name, removable)))
    for chain in _chains(flow, inside):
        fresh = tuple(layer for layer in flow.layers(chain) if layer not in taken)
        if fresh:
            taken.update(fresh)
            source_name = flow.reads[chain[0]][0].name
            drafts.append((None, Segment(fresh[0], fresh, (), source_name, chain[-1].name, False)))

    order = {layer: rank for rank, layer in enumerate(flow.layers(flow.reads))}
    drafts.sort(key=lambda draft: order[draft[1].layers[0]])
    prefixes = [segment.name for _, segment in drafts]
    groups = _groups_by_layer(coupling)
    return tuple(
        Segment(
            addition.name if addition and (not s.name or prefixes.count(s.name) > 1) else s.name,
            s.layers,
            tuple(dict.fromkeys(g.name for g in coupling for layer in s.layers if g.name in groups[layer])),
            s.source,
            s.result,
            s.removable,
        )
        for addition, s in drafts
    )


class _Flow:
    """The tensors of a traced network that depend on its input.

    Attributes:
        reads: the operands of each node, in the order of execution; the input has none.
        users: how many nodes read a node, the network's output among them.
    """

    def __init__(self, traced: Trace) -> None:
        self.graph, self.modules, self.shapes = traced.graph, traced.modules, traced.shapes
        self.reads: dict[fx.Node, list[fx.Node]] = {}
        for node in traced.graph.nodes:
            operands = [operand for operand in node.all_input_nodes if operand in self.reads]
            if node in traced.shapes and node.op != "output" and (operands or node.op == "placeholder"):
                self.reads[node] = operands
        self.users = {n: sum(user in self.reads or user.op == "output" for user in n.users) for n in self.reads}

    def operation(self, node: fx.Node) -> Operation | None:
        return operation_of(node, self.modules)

    def adds(self, node: fx.Node) -> bool:
        row = self.operation(node)
        return row is not None and row.adds

    def keeps_zero(self, node: fx.Node) -> bool:
        return keeps_zero(node, self.modules)

    def multiplies(self, node: fx.Node) -> bool:
        row = self.operation(node)
        return row is not None and row.multiplies

    def layer(self, node: fx.Node) -> str | None:
        """The layer with channels that a node calls; None if it calls none."""
        if node.op == "call_module" and isinstance(self.modules[str(node.target)], CHANNEL_LAYERS):
            return str(node.target)
        return None

    def layers(self, nodes: Collection[fx.Node]) -> tuple[str, ...]:
        """The layers called by some nodes, in the order of their first call."""
        return tuple(dict.fromkeys(name for n in self.reads if n in nodes and (name := self.layer(n)) is not None))

    def dominators(self) -> dict[fx.Node, fx.Node]:
        """The immediate dominator of each node but the input: where the dominators of its operands meet.

        One pass is enough, because an acyclic graph is visited in topological order (Cooper et al. 2001, "A simple,
        fast dominance algorithm").
        """
        above: dict[fx.Node, fx.Node] = {}
        depth: dict[fx.Node, int] = {}
        for node, operands in self.reads.items():
            if not operands:
                depth[node] = 0
                continue
            meeting, *others = operands
            for other in others:
                while meeting is not other:
                    if depth[meeting] >= depth[other]:
                        meeting = above[meeting]
                    else:
                        other = above[other]
            above[node], depth[node] = meeting, depth[meeting] + 1
        return above


def _blocks(flow: _Flow) -> Iterator[tuple[fx.Node, fx.Node, set[fx.Node]]]:
    """Yield the source, the addition and all nodes between them, for each innermost residual block with layers."""
    above = flow.dominators()
    additions: set[fx.Node] = set()
    for node, operands in flow.reads.items():
        if len(operands) < 2 or not flow.adds(node):
            continue
        source, region, waiting = above[node], {node}, list(operands)
        while waiting:
            other = waiting.pop()
            if other is not source and other not in region:
                region.add(other)
                waiting += flow.reads[other]
        if flow.layers(region) and not region & additions:
            additions.add(node)
            yield source, node, region


def _result(flow: _Flow, addition: fx.Node) -> fx.Node:
    if flow.users[addition] == 1:
        (user,) = (user for user in addition.users if user in flow.reads or user.op == "output")
        if flow.keeps_zero(user) and flow.reads.get(user) == [addition]:
            return user
    return addition


def _removable(flow: _Flow, source: fx.Node, addition: fx.Node, region: set[fx.Node]) -> bool:
    """Whether the addition can be replaced by ``source``: ``source`` is one of its operands, nothing else reads the
    branch, and the branch gives zeros if its first layer gives zeros and its other layers pass their inputs on."""
    left, right = flow.reads[addition]
    shortcut, branch = (left, right) if _behind_identity(flow, left) is source else (right, left)
    if _behind_identity(flow, shortcut) is not source or flow.shapes[addition] != flow.shapes[source]:
        return False
    if len(addition.args) != 2 or addition.kwargs:  # torch.add(x, y, alpha=2)
        return False
    if not _vanishes(flow, branch, flow.layers(region)[0]):
        return False
    inside = set(flow.layers(region))
    if any(flow.layer(n) in inside for n in flow.reads if n not in region):  # a layer is also called elsewhere
        return False
    return not _needed_without(flow.graph, addition, shortcut) & (region - {addition, shortcut})


def _vanishes(flow: _Flow, node: fx.Node, first: str) -> bool:
    """Whether a node of a branch is zero if its layer ``first`` gives zeros and its others pass their inputs on."""
    if (layer := flow.layer(node)) == first:
        return True
    operands = flow.reads[node]
    if flow.multiplies(node):
        return any(_vanishes(flow, operand, first) for operand in operands)
    return (layer is not None or flow.keeps_zero(node)) and len(operands) == 1 and _vanishes(flow, operands[0], first)


def _behind_identity(flow: _Flow, node: fx.Node) -> fx.Node:
    while name_of(node, flow.modules) == "identity":
        (node,) = flow.reads[node]
    return node


def _needed_without(graph: fx.Graph, addition: fx.Node, shortcut: fx.Node) -> set[fx.Node]:
    """The nodes that the outputs need if an addition is replaced by one of its operands."""
    needed: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += [shortcut] if node is addition else node.all_input_nodes
    return needed


def _chains(flow: _Flow, inside: Collection[fx.Node]) -> list[list[fx.Node]]:
    """The nodes outside the blocks, in maximal runs of nodes with one operand and one reader."""
    chains: dict[fx.Node, list[fx.Node]] = {}  # by the last node
    for node, operands in flow.reads.items():
        if node in inside or len(operands) != 1:
            continue
        chain = chains.pop(operands[0], []) if flow.users[operands[0]] == 1 else []
        chains[node] = [*chain, node]
    return list(chains.values())


def _prefix(layers: Sequence[str]) -> str:
    """The longest common module path of some layers; for a single layer that of its parent. May be empty.

    >>> _prefix(["layer1.0.conv1", "layer1.0.downsample.0"])
    'layer1.0'
    """
    parents = [layer.split(".")[:-1] for layer in layers]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False))
    return ".".join(parts[0] for parts in shared)


def _groups_by_layer(coupling: Coupling) -> Mapping[str, set[str]]:
    groups: dict[str, set[str]] = defaultdict(set)
    for group in coupling:
        for slot in (*group.writers, *group.readers, *group.norms):
            groups[slot.layer].add(group.name)
    return groups
