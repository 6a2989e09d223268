"""Fold batch normalisation into the layer before it (Jacob et al. 2018, arXiv:1712.05877, section 3.2).

The network that ships has no BN: an engine multiplies once, and the weight that is quantized is the folded one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import fx, nn

from compress.models.shapes import replace_module
from compress.quantize.graph import layer_of, trace

_WEIGHTED = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
_NORM = nn.BatchNorm1d | nn.BatchNorm2d


def fold(net: nn.Module) -> nn.Module:
    """A copy of ``net`` without BN: ``conv -> BN`` is one convolution with bias, ``linear -> BN`` one linear layer.

    Same function in eval mode. The BN's place holds an ``nn.Identity``, so layer names stay. A BN that cannot be folded
    (it follows no layer, as in pre-activation nets, or the layer's output is read elsewhere too) becomes a depthwise
    1x1 convolution, which engines run in integers. Only a BN that keeps no running statistics, and a BN of vectors that
    follows no linear layer, stay as they are.

    Args:
        net: raised.
    """
    folded = copy.deepcopy(net).eval()
    graph = trace(folded)
    for name, norm, calls in list(_norms(graph)):
        before = _only_before(graph, calls)
        if before is not None and isinstance(layer := folded.get_submodule(before), _WEIGHTED):
            replace_module(folded, before, _fused(layer, norm))
            replace_module(folded, name, nn.Identity())
        elif not isinstance(norm, nn.BatchNorm1d):
            replace_module(folded, name, _depthwise(norm))
    return folded


def _norms(graph: fx.GraphModule) -> Iterator[tuple[str, _NORM, list[fx.Node]]]:
    """(name, BN, its calls) for each BN with running statistics."""
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if isinstance(layer_of(graph, node), _NORM):
            calls.setdefault(str(node.target), []).append(node)
    for name, nodes in calls.items():
        norm = graph.get_submodule(name)
        assert isinstance(norm, _NORM)
        if norm.running_mean is not None:
            yield name, norm, nodes


def _only_before(graph: fx.GraphModule, calls: list[fx.Node]) -> str | None:
    """The one layer whose every output these calls read, and nothing else reads; None if there is no such layer."""
    sources = [node.all_input_nodes[0] for node in calls]
    names = {node.target if node.op == "call_module" else None for node in sources}
    if len(names) != 1 or None in names or any(len(source.users) != 1 for source in sources):
        return None
    (name,) = names
    everywhere = [node for node in graph.graph.nodes if node.op == "call_module" and node.target == name]
    return str(name) if len(everywhere) == len(set(sources)) else None


def _fused(layer: _WEIGHTED, norm: _NORM) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return nn.utils.fuse_linear_bn_eval(layer, norm)
    return nn.utils.fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, nn.ConvTranspose2d))


def _depthwise(norm: _NORM) -> nn.Module:
    """The 1x1 convolution, one group a channel, that computes what ``norm`` does."""
    channels, mean = norm.num_features, norm.running_mean
    conv = nn.Conv2d(channels, channels, 1, groups=channels, bias=False).to(mean).eval()
    nn.init.ones_(conv.weight)
    return nn.utils.fuse_conv_bn_eval(conv, norm)
