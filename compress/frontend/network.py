"""The raised network."""

from __future__ import annotations

import copy

from torch import fx
from torch.fx.graph import PythonCode

from compress.frontend.removal import drop_removed


class RaisedNetwork(fx.GraphModule):
    """A network in the one dialect that pruning, quantization and export read.

    ``graph`` calls standard layers and functions. Layers and tensors have the names that the user's network gives them;
    what does not take part in the forward pass is left out. Branches with a ``Removed`` layer do not run: ``recompile``
    after layers were replaced.
    """

    def live_graph(self) -> fx.Graph:
        """A copy of the graph, without removed branches.

        >>> from torch import nn
        >>> from compress.frontend.raising import raised
        >>> net = raised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), (3, 8, 8))
        >>> [node.name for node in net.live_graph().nodes]
        ['input_1', '_0', '_1', 'output']
        """
        graph = copy.deepcopy(self.graph)
        drop_removed(graph, self)
        return graph

    def recompile(self) -> PythonCode:
        """Make the forward pass anew from the graph and the layers."""
        whole = self._graph
        self._graph = self.live_graph()
        try:
            return super().recompile()
        finally:
            self._graph = whole
