"""Measure BN statistics that are stale or folded into the weights, without changing the network's function.

Some published checkpoints have running mean 0 and variance 1 in every BN, because the real statistics are folded into
the weights. Such a network evaluates correctly, but training normalises by batch statistics that its gamma and beta do
not fit, which destroys it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


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
    so that gamma' (x - m')/s' + beta' = gamma (x - m)/s + beta.

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
