"""Find the classifier: the layer whose outputs are the network's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import fx, nn

from compress.frontend.ops import name_of, operation_of
from compress.graph.tracing import Trace, trace

_AFTER = (
    *("softmax", "logsoftmax", "sigmoid", "logsigmoid"),
    *("truediv", "mul", "add", "sub", "to"),
    *("mean", "avgpool2d", "adaptiveavgpool2d"),
)
"""What may follow a classifier: it maps the scores of the classes one by one, or averages them over the pixels."""
_POOLS = ("mean", "sum", "amax", "avgpool2d", "adaptiveavgpool2d", "adaptivemaxpool2d")
_MAPS = 4  # dimensions


def head_of(net: nn.Module, shape: Sequence[int]) -> str | None:
    """The name of the convolution or fully connected layer that makes the one output (N, K) of a network.

    It is found by the flow to the output, not by its name or place. None for a backbone: several outputs, maps, or
    features that something else makes.

    Args:
        net: that takes images of ``shape`` (C, H, W).

    Raises:
        ModelError: see ``trace``.

    >>> from compress.models.registry import build
    >>> head_of(build("resnet18", 7), (3, 64, 64))
    'fc'
    """
    found = _head(trace(net, shape))
    return None if found is None else str(found.target)


class Features(NamedTuple):
    """What a classifier is made of, as names of nodes in the network's graph.

    Attributes:
        maps: the features before they are pooled, (N, C, H, W); what the head reads where it reads no maps.
        channels: C.
        scores: the head's outputs, before a softmax.
        head: the name of the layer that makes them.
    """

    maps: str
    channels: int
    scores: str
    head: str


def features_of(net: nn.Module, shape: Sequence[int]) -> Features | None:
    """The features of a classifier before global pooling, and its logits; None for a backbone, as ``head_of``.

    >>> from compress.models.registry import build
    >>> features_of(build("cifar_resnet20", 10), (3, 32, 32))
    Features(maps='layer3_2_relu_1', channels=64, scores='linear', head='linear')
    """
    traced = trace(net, shape)
    head = _head(traced)
    if head is None:
        return None
    maps = head.all_input_nodes[0]
    while _is_pooled(maps, traced):
        (maps,) = maps.all_input_nodes
    return Features(maps.name, traced.shapes[maps][1], head.name, str(head.target))


def _is_pooled(node: fx.Node, traced: Trace) -> bool:
    """Whether a node only pools or rearranges maps that have more than one position."""
    row, operands = operation_of(node, traced.modules), node.all_input_nodes
    if row is None or len(operands) != 1 or len(traced.shapes.get(operands[0], ())) != _MAPS:
        return False
    pools = row.moves or name_of(node, traced.modules) in _POOLS
    return pools and not (len(traced.shapes[node]) == _MAPS and min(traced.shapes[node][2:]) > 1)


def _head(traced: Trace) -> fx.Node | None:
    """The call of the classifier."""
    node = next(iter(traced.graph.find_nodes(op="output"))).args[0]
    if not isinstance(node, fx.Node) or len(traced.shapes.get(node, ())) != 2:
        return None
    outputs, varies = traced.shapes[node][1], _varying(traced)
    while True:
        layer = traced.modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(layer, nn.Conv2d | nn.Linear):
            return node if traced.shapes[node][1] == outputs else None
        row = operation_of(node, traced.modules)
        passes = row is not None and (row.moves or name_of(node, traced.modules) in _AFTER)
        operands = [operand for operand in node.all_input_nodes if operand in varies]
        if not passes or len(operands) != 1:
            return None
        (node,) = operands


def _varying(traced: Trace) -> set[fx.Node]:
    """The nodes that depend on the images."""
    found: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if node.op == "placeholder" or found.intersection(node.all_input_nodes):
            found.add(node)
    return found
