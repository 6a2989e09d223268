"""Fold batch normalisation into the convolution before it (Jacob et al. 2018, arXiv:1712.05877, section 3.2).

The network that ships has no BN: an engine multiplies once, and the weight that is quantized is the folded one.
"""

from __future__ import annotations

import copy

from torch import nn

from compress.models.shapes import replace_module
from compress.quantize.graph import layer_of, trace


def fold(net: nn.Module) -> nn.Module:
    """A copy of ``net`` in which ``conv -> BN`` is one convolution with bias; same function in eval mode.

    The BN's place holds an ``nn.Identity``, so layer names stay. A BN is left as it is where it cannot be folded: it
    follows no convolution (pre-activation nets), the convolution's output or its weights are used elsewhere too, or it
    keeps no running statistics. ReLUs are made out of place, because quantizers look at their inputs as well.

    Raises:
        ModelError: the network cannot be traced.
    """
    folded = copy.deepcopy(net).eval()
    graph = trace(folded)
    calls = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    for node in graph.graph.nodes:
        bn = layer_of(graph, node)
        if not isinstance(bn, nn.BatchNorm2d) or bn.running_mean is None:
            continue
        source = node.args[0]
        conv = layer_of(graph, source)
        once = calls.count(source.target) == 1 and calls.count(node.target) == 1
        if isinstance(conv, nn.Conv2d) and len(source.users) == 1 and once:
            replace_module(folded, str(source.target), nn.utils.fuse_conv_bn_eval(conv, bn))
            replace_module(folded, str(node.target), nn.Identity())
    for module in folded.modules():
        if isinstance(module, nn.ReLU | nn.ReLU6):
            module.inplace = False
    return folded
