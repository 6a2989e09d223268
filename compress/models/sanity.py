"""Check that a network's outputs are usable: finite weights can still lead to infinite values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import ModelError

LARGEST = 1e12  # of a layer's outputs: sums of a million squares still fit into float32


@torch.no_grad()
def check_activations(net: nn.Module, images: Tensor) -> None:
    """Run a network once and check the outputs of each layer.

    Args:
        net: in eval mode; left as it is.
        images: (N, C, H, W), on its device.

    Raises:
        ModelError: a layer's outputs are NaN, infinite or beyond ``LARGEST``; the message names the first such layer.

    >>> net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    >>> _ = nn.init.constant_(net[0].weight, 1e30)
    >>> check_activations(net, torch.ones(1, 1, 2, 2))
    Traceback (most recent call last):
    compress.errors.ModelError: layer '0' gives values of up to 1e+30 on ordinary images
      fix: its weights or BN statistics are damaged, or the training diverged: use another checkpoint
    """
    names = {module: name for name, module in net.named_modules() if not any(module.children())}

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or not output.is_floating_point() or not output.numel():
            return
        largest = output.abs().max().item()  # NaN where there is one
        if not largest <= LARGEST:
            raise ModelError(
                f"layer '{names[module]}' gives values of up to {largest:g} on ordinary images",
                remedy="its weights or BN statistics are damaged, or the training diverged: use another checkpoint",
            )

    hooks = [module.register_forward_hook(look) for module in names]
    try:
        net(images)
    finally:
        for hook in hooks:
            hook.remove()
