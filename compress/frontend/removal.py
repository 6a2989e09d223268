"""Drop removed residual branches from a traced graph."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from compress.frontend.layers import Removed
from compress.frontend.ops import keeps_zero, name_of, operation_of

Modules = Mapping[str, nn.Module]


def drop_removed(graph: fx.Graph, net: nn.Module) -> None:
    """Remove the branches that hold a ``Removed`` layer from the graph of ``net``, in place.

    The addition at the end of such a branch is replaced by its other operand. The nodes that computed the branch are
    erased, and so is a ReLU that no longer changes anything.
    """
    modules = dict(net.named_modules())
    if not any(isinstance(module, Removed) for module in modules.values()):
        return
    for node in list(graph.nodes):
        row = operation_of(node, modules)
        if row is None or not row.adds or len(node.all_input_nodes) != 2:
            continue
        for zeros, other in (node.all_input_nodes, node.all_input_nodes[::-1]):
            if _is_zero(zeros, modules):
                _put_through(graph, node, other, modules)
                break


def _put_through(graph: fx.Graph, node: fx.Node, other: fx.Node, modules: Modules) -> None:
    """Replace an addition by one of its operands."""
    for user in list(node.users):
        if name_of(user, modules) == "relu" and _never_negative(other, modules):
            user.replace_all_uses_with(other)
            graph.erase_node(user)
    node.replace_all_uses_with(other)
    _erase_unused(graph, node)


def _never_negative(node: fx.Node, modules: Modules) -> bool:
    """Whether the node's value is the output of a ReLU, possibly pooled or passed on."""
    while (row := operation_of(node, modules)) is not None and row.keeps_sign and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return name_of(node, modules) == "relu"


def _is_zero(node: fx.Node, modules: Modules) -> bool:
    """Whether the node passes on the output of a ``Removed`` layer, or multiplies it by something."""
    if node.op == "call_module" and isinstance(modules[str(node.target)], Removed):
        return True
    row, operands = operation_of(node, modules), node.all_input_nodes
    if len(operands) == 1 and keeps_zero(node, modules):
        return _is_zero(operands[0], modules)
    return row is not None and row.multiplies and any(_is_zero(operand, modules) for operand in operands)


def _erase_unused(graph: fx.Graph, node: fx.Node) -> None:
    """Erase a node without users, and then the nodes that only it used."""
    waiting = [node]
    while waiting:
        last = waiting.pop()
        if not last.users and last.op != "placeholder" and last in last.graph.nodes:
            operands = last.all_input_nodes
            graph.erase_node(last)
            waiting += operands
