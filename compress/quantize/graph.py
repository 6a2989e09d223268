"""The traced network that calibration, fake quantization and export share.

It is traced once, so that the node names in ``quantizers.json`` mean the same tensor everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.frontend.network import RaisedNetwork
from compress.frontend.ops import Operation, operation_of

PREFIX = "node_"


def trace(net: nn.Module) -> fx.GraphModule:
    """A raised network as a graph of layer calls, without its ``nn.Identity``; it shares the network's modules.

    >>> from compress.frontend.raising import raised
    >>> net = raised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), (3, 8, 8))
    >>> [node.name for node in trace(net).graph.nodes]
    ['input_1', '_0', '_1', 'output']
    """
    assert isinstance(net, RaisedNetwork)
    module = fx.GraphModule(net, net.live_graph())
    for node in list(module.graph.nodes):
        if isinstance(layer_of(module, node), nn.Identity):  # where a BN was folded
            node.replace_all_uses_with(node.all_input_nodes[0])
            module.graph.erase_node(node)
    module.recompile()
    return module


def layer_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The layer that a node calls; None where it calls a function."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def called(graph: fx.GraphModule, node: fx.Node) -> dict[str, nn.Module]:
    """The layer that a node calls, by its name; empty where it calls a function."""
    layer = layer_of(graph, node)
    return {} if layer is None else {str(node.target): layer}


def operation(graph: fx.GraphModule, node: fx.Node) -> Operation | None:
    """A node's row in the table of operations; None where it has none."""
    return operation_of(node, called(graph, node))


def _plain(value: Any) -> Any:
    """Lists and dicts in place of fx's immutable ones: NNCF writes into a call's arguments."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if type(value) is tuple:
        return tuple(_plain(item) for item in value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


class _Call(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class Unrolled(nn.Module):
    """The graph as a plain module with one child a node, called ``node_<its name>``.

    NNCF names a place in a network by module path, function name and number of the call. Here the path alone is the
    node, so what NNCF inserts can be read back without guessing, shared and functional ReLUs included. It is no
    ``fx.GraphModule`` because NNCF takes those to another backend. Parameters are shared with the graph's network.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.nodes = tuple(graph.graph.nodes)
        last = {source: node for node in self.nodes for source in node.all_input_nodes}
        self.spent = {node: [source for source, user in last.items() if user is node] for node in self.nodes}
        for node in self.nodes:
            name = PREFIX + node.name
            if node.op == "call_module":  # a copy for every call of a shared layer, or it would have one name only
                setattr(self, name, copy.copy(graph.get_submodule(str(node.target))))
            elif node.op == "call_function":
                assert callable(node.target)
                setattr(self, name, _Call(node.target))
            elif node.op == "call_method":
                setattr(self, name, _Call(getattr(Tensor, str(node.target))))
            elif node.op == "get_attr":
                owner, _, attribute = str(node.target).rpartition(".")
                value = getattr(graph.get_submodule(owner), attribute)
                if isinstance(value, nn.Parameter):
                    self.register_parameter(name, value)
                else:
                    self.register_buffer(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Unrolled:
        """NNCF copies what it quantizes. The nodes are shared: they are chained, and a deep network's are too many."""
        memo.update({id(node): node for node in self.nodes})
        result = memo[id(self)] = type(self).__new__(type(self))
        result.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return result

    def forward(self, input: Tensor) -> Any:
        """(N, C, H, W) -> what the network returns."""
        return self.walk(input, lambda node, value: None)

    def walk(self, input: Tensor, see: Callable[[fx.Node, Any], None]) -> Any:
        """Run node by node, showing each one's output to ``see``."""
        values: dict[fx.Node, Any] = {}
        for node in self.nodes:
            args, kwargs = _plain(fx.map_arg((node.args, node.kwargs), values.__getitem__))
            if node.op == "output":
                return args[0]
            if node.op == "placeholder":
                values[node] = input
            elif node.op == "get_attr":
                values[node] = getattr(self, PREFIX + node.name)
            else:
                values[node] = getattr(self, PREFIX + node.name)(*args, **kwargs)
            see(node, values[node])
            for source in self.spent[node]:  # or a batch would hold every layer's output at once
                del values[source]
        raise AssertionError("a graph ends with its output node")

    @torch.no_grad()
    def first_non_finite(self, input: Tensor) -> str | None:
        """Name of the first layer (or graph node) whose output has a NaN or an infinity."""
        found: list[str] = []

        def see(node: fx.Node, value: Any) -> None:
            if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
                found.append(str(node.target) if node.op == "call_module" else node.name)

        self.walk(input, see)
        return found[0] if found else None
