"""Find the classifier: the layer whose outputs are the network's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn

from compress.frontend.ops import name_of, operation_of
from compress.graph.tracing import Trace, trace

_AFTER = (
    *("softmax", "logsoftmax", "sigmoid", "logsigmoid"),
    *("truediv", "mul", "add", "sub", "to"),
    *("mean", "avgpool2d", "adaptiveavgpool2d"),
)
"""What may follow a classifier: it maps the scores of the classes one by one, or averages them over the pixels."""


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
    traced = trace(net, shape)
    node = next(iter(traced.graph.find_nodes(op="output"))).args[0]
    if not isinstance(node, fx.Node) or len(traced.shapes.get(node, ())) != 2:
        return None
    outputs, varies = traced.shapes[node][1], _varying(traced)
    while True:
        layer = traced.modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(layer, nn.Conv2d | nn.Linear):
            return str(node.target) if traced.shapes[node][1] == outputs else None
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
