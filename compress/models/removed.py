"""What stands where a whole residual branch was removed, and how the traced graph forgets the branch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn


class Removed(nn.Module):
    """Zeros like its input, in the place of the first layer of a removed residual branch.

    So the block computes ``x + 0`` when it is run as it is written; ``drop_removed`` takes both out of its graph.

    >>> Removed()(torch.ones(1, 2)).tolist()
    [[0.0, 0.0]]
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> zeros of the same shape."""
        return torch.zeros_like(x)


ADDITIONS = frozenset({"add", "iadd"})

ZERO_KEEPING = frozenset(
    {"relu", "relu6", "leakyrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "tanh", "hardswish"}
    | {"dropout", "dropout2d", "stochasticdepth", "identity", "contiguous", "clone"}
)
"""Element-wise operations on one tensor with f(0) = 0, as ``operation`` names them."""

_KEEP_SIGN = frozenset({"maxpool2d", "avgpool2d", "dropout", "dropout2d", "identity", "contiguous", "clone"})


def operation(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """What a node computes: ``leakyrelu`` for nn.LeakyReLU, F.leaky_relu and x.leaky_relu_() alike.

    Args:
        modules: by the names that ``call_module`` nodes use.
    """
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__.lower()
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name if name.startswith("_") else name.replace("_", "")


def drop_removed(graph: fx.Graph, net: nn.Module) -> None:
    """Take removed branches out of the graph of ``net``, in place.

    The addition of a branch that holds ``Removed`` gives way to its other operand, a ReLU that thereby changes
    nothing goes too, and so does whatever computed the branch.
    """
    modules = dict(net.named_modules())
    for node in list(graph.nodes):
        if operation(node, modules) not in ADDITIONS or len(node.all_input_nodes) != 2:
            continue
        for zeros, other in (node.all_input_nodes, node.all_input_nodes[::-1]):
            if _is_zero(zeros, modules):
                for user in list(node.users):
                    if operation(user, modules) == "relu" and _never_negative(other, modules):
                        user.replace_all_uses_with(other)
                        graph.erase_node(user)
                in_place = [user for user in node.users if _in_place(user, modules)]
                node.replace_all_uses_with(other)
                _erase_unused(graph, node)
                for user in in_place:
                    if len(other.users) > 1:  # it would change what others read
                        with graph.inserting_before(user):
                            user.replace_input_with(other, graph.call_method("clone", (other,)))
                break


def _in_place(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.endswith("_") or bool(node.kwargs.get("inplace"))


def _never_negative(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the node is a ReLU's result, pooled or passed on."""
    while operation(node, modules) in _KEEP_SIGN and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return operation(node, modules) == "relu"


def _is_zero(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the node passes on what a ``Removed`` returns."""
    while operation(node, modules) in ZERO_KEEPING and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node.op == "call_module" and isinstance(modules[str(node.target)], Removed)


def _erase_unused(graph: fx.Graph, node: fx.Node) -> None:
    """Erase a node without users, and then what computed its operands for it alone."""
    waiting = [node]
    while waiting:
        last = waiting.pop()
        if not last.users and last.op != "placeholder":
            operands = last.all_input_nodes
            graph.erase_node(last)
            waiting += operands
