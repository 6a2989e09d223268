"""Add the quantizers that an engine needs beside NNCF's, so that every layer with weights runs in integers.

NNCF leaves some layers alone (the 1x1 convolutions of a squeeze-and-excite gate), and it quantizes inputs alone.
ONNX Runtime's integer convolution also writes integers: without a quantizer behind it, it runs in float, whatever its
inputs are. So a convolution whose output goes to an operation that NNCF leaves in float (SiLU, the scale of a residual
branch, an output of the network) gets one.
"""

from __future__ import annotations

from collections.abc import Set

from torch import fx, nn

from compress.frontend.ops import name_of
from compress.quantize.graph import called, layer_of, operation
from compress.quantize.insertion import Site, Sites, in_order
from compress.quantize.quantizable import QUANTIZED
from compress.targets import Profile

_CLAMPS = ("relu", "relu6", "clamp")  # fused into the quantizer behind them


def complete(graph: fx.GraphModule, sites: Sites, rule: Profile) -> Sites:
    """The sites, with all layers that have weights, and with what ``rule`` wants quantized behind convolutions.

    Args:
        graph: of a BN-folded network; see ``graph.trace``.
        sites: as NNCF found them.
    """
    found, layers = set(sites.activations), dict.fromkeys(sites.layers)
    for node in graph.graph.nodes:
        if isinstance(layer_of(graph, node), QUANTIZED):
            layers[str(node.target)] = None
            (source,) = node.all_input_nodes
            if not _is_quantized(graph, found, source, node):
                found.add((source.name, node.name))
    if not rule.float_output:
        for node in graph.graph.nodes:
            if isinstance(layer_of(graph, node), nn.Conv2d):
                found = _with_output(found, _after_clamps(graph, node))
    return Sites(in_order(graph, found), tuple(layers))


def _is_quantized(graph: fx.GraphModule, sites: Set[Site], source: fx.Node, user: fx.Node) -> bool:
    """Whether ``user`` reads integers from ``source``, made there or before operations that only move values."""
    if sites & {(source.name, None), (source.name, user.name)}:
        return True
    row = operation(graph, source)
    moves = row is not None and row.moves and bool(source.all_input_nodes)
    return moves and _is_quantized(graph, sites, source.all_input_nodes[0], source)


def _with_output(sites: set[Site], node: fx.Node) -> set[Site]:
    """The sites with one quantizer for all readers of a node."""
    own = {site for site in sites if site[0] == node.name}
    if len(node.users) == 1 and own:
        return sites
    return (sites - own) | {(node.name, None)}


def _after_clamps(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The last of the clamps behind a node that nothing else reads."""
    while len(node.users) == 1 and name_of(user := next(iter(node.users)), called(graph, user)) in _CLAMPS:
        node = user
    return node
