"""Learn another network's features: what recovers a pruned or quantized network where there are no labels.

The features before global pooling, and the logits that the frozen classifier makes of them, are what the network is
held to (MiR: Wang et al. 2021, arXiv:2105.08357; PRACTISE: Wang et al. 2022, arXiv:2202.07861).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from compress.frontend.network import RaisedNetwork
from compress.graph.groups import couple, kept_rows
from compress.graph.head import Features


def tapped(net: nn.Module, at: Features) -> fx.GraphModule:
    """A network that returns (features, logits) in place of its output; it shares the layers of ``net``.

    Args:
        net: a raised network, or one that was made from it, with the same names of nodes.
    """
    assert isinstance(net, fx.GraphModule)
    graph = net.live_graph() if isinstance(net, RaisedNetwork) else copy.deepcopy(net.graph)
    nodes = {node.name: node for node in graph.nodes}
    output = next(iter(graph.find_nodes(op="output")))
    output.args = ((nodes[at.maps], nodes[at.scores]),)
    module = fx.GraphModule(net, graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def among(net: nn.Module, names: Collection[str], at: Features) -> Features:
    """The same features in a network that was made from ``net``, whose batch norms are folded into what they read.

    Args:
        names: of that network's nodes.
    """
    assert isinstance(net, fx.GraphModule)
    nodes = {node.name: node for node in net.graph.nodes}
    maps = at.maps
    while maps not in names:
        (before,) = nodes[maps].all_input_nodes
        maps = before.name
    return at._replace(maps=maps)


class Teacher(nn.Module):
    """The (features, logits) of a network, of the features only some channels.

    Args:
        channels: their indices, ascending; None: all.
    """

    channels: Tensor | None

    def __init__(self, net: fx.GraphModule, channels: Sequence[int] | None) -> None:
        super().__init__()
        self.net = net
        chosen = None if channels is None else torch.tensor(channels)
        self.register_buffer("channels", chosen, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W)."""
        features, scores = self.net(x)
        return features if self.channels is None else features.index_select(1, self.channels), scores


def survivors(net: nn.Module, shape: Sequence[int], at: Features, kept: Mapping[str, Sequence[int]]) -> list[int]:
    """Which channels of a network's features are still there after it was pruned, ascending.

    Args:
        net: before it was pruned; takes images of ``shape`` (C, H, W).
        kept: the units that stay, by group; a group that is not named keeps all.
    """
    rows = kept_rows(net, couple(net, shape), kept).get(at.head)
    if rows is None:
        return list(range(at.channels))
    found: list[int] = rows.view(at.channels, -1).any(1).nonzero().flatten().tolist()
    return found


@contextmanager
def frozen(layer: nn.Module) -> Iterator[None]:
    """For the block, no parameter of a layer learns."""
    learning = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
