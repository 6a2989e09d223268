"""Measure BN statistics that are stale or folded into the weights, without changing the network's function.

Some published checkpoints have running mean 0 and variance 1 in every BN, because the real statistics are folded into
the weights. Such a network evaluates correctly, but training normalises by batch statistics that its gamma and beta do
not fit, which destroys it.

Many of its convolutions are small besides, as are those that repair has solved anew. A weight in front of a BN changes
by lr / size^2 of itself (van Laarhoven 2017, arXiv:1706.05350, section 2), so that ordinary learning rates are too high
for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from operator import attrgetter

import torch
from torch import Tensor, fx, nn

_DEAD = 1e-4  # of the size that weights begin with: such a layer does nothing


def has_stale_statistics(net: nn.Module) -> bool:
    """Whether the network has BN layers and all of them have running mean 0 and variance 1, as at initialisation."""
    layers = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]
    return bool(layers) and all(_is_initial(layer) for layer in layers)


def _is_initial(layer: nn.BatchNorm2d) -> bool:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return bool((layer.running_mean == 0).all() and (layer.running_var == 1).all())


@torch.no_grad()
def reparameterize(net: nn.Module, images: Iterable[Tensor]) -> None:
    """Give each BN the statistics of its own input, and change gamma and beta so that the eval function stays the same.

    With old statistics (m, v), measured ones (m', v') and s = sqrt(v + eps), s' = sqrt(v' + eps):
    gamma' = gamma s'/s and beta' = beta + gamma (m' - m)/s,
    so that gamma' (x - m')/s' + beta' = gamma (x - m)/s + beta. Then ``enlarge`` follows.

    Args:
        net: changed in place; left in eval mode.
        images: batches (N, C, H, W), float, normalised.
    """
    net.eval()
    sums: dict[nn.BatchNorm2d, Tensor] = {}

    def collect(layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].double()
        moments = torch.stack(
            [x.new_full((x.shape[1],), x.numel() / x.shape[1]), x.sum((0, 2, 3)), (x * x).sum((0, 2, 3))]
        )
        sums[layer] = sums[layer] + moments if layer in sums else moments

    layers = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d) and m.affine]
    handles = [layer.register_forward_pre_hook(collect) for layer in layers]
    try:
        for batch in images:
            net(batch)
    finally:
        for handle in handles:
            handle.remove()
    for layer, (count, total, squares) in sums.items():
        assert layer.running_mean is not None
        assert layer.running_var is not None
        mean = total / count
        variance = (squares / count - mean**2).clamp(min=1e-8)  # a channel that is always 0 keeps a positive variance
        old = (layer.running_var.double() + layer.eps).sqrt()
        gain = layer.weight.double() / old
        layer.bias.copy_(layer.bias + gain * (mean - layer.running_mean))
        layer.weight.copy_(gain * (variance + layer.eps).sqrt())
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
    enlarge(net)


@torch.no_grad()
def enlarge(net: nn.Module) -> None:
    """Give small convolutions in front of a BN the size that training begins with, and the BN statistics to match.

    That size is sqrt(2 / (outputs * kernel)), root mean square (He et al. 2015, arXiv:1502.01852, section 2.2). The
    function stays: a convolution's rows are all multiplied by one factor, by which the BN then divides.

    Args:
        net: changed in place; an fx graph, in which it can be seen what reads what. Any other is left as it is.
    """
    for conv, layer in _pairs(net):
        _multiply(conv, layer)


def _pairs(net: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The convolutions that only a BN reads, with that BN; nothing else in the network uses a parameter of either."""
    if not isinstance(net, fx.GraphModule):
        return
    called = {node: net.get_submodule(str(node.target)) for node in net.graph.nodes if node.op == "call_module"}
    uses = Counter(id(parameter) for module in called.values() for parameter in module.parameters(recurse=False))
    uses.update(id(attrgetter(str(node.target))(net)) for node in net.graph.nodes if node.op == "get_attr")
    for node, layer in called.items():
        before = next(iter(node.all_input_nodes), None)
        conv = called.get(before) if before is not None and len(before.users) == 1 else None
        if not (isinstance(conv, nn.Conv2d) and isinstance(layer, nn.BatchNorm2d)) or not (
            layer.affine and layer.track_running_stats
        ):
            continue
        if all(uses[id(p)] == 1 for module in (conv, layer) for p in module.parameters(recurse=False)):
            yield conv, layer


def _multiply(conv: nn.Conv2d, layer: nn.BatchNorm2d) -> None:
    """One factor for all rows: which of them are larger means something to importance by norms."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    size = float(conv.weight.double().square().mean().sqrt())
    usual = (2 / conv.weight[:, 0].numel()) ** 0.5
    if not _DEAD * usual < size < usual:
        return
    scale = usual / size
    gain = layer.weight.double() / (layer.running_var.double() + layer.eps).sqrt()
    conv.weight.mul_(scale)
    if conv.bias is not None:
        conv.bias.mul_(scale)
    layer.running_mean.mul_(scale)
    layer.running_var.mul_(scale**2)
    layer.weight.copy_(gain / scale * (layer.running_var.double() + layer.eps).sqrt())
