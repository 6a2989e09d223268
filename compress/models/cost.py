"""The cost of a network for one image: multiply-accumulates and parameters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from compress.parse import Count


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one image (convolutions and matrix products) and parameters (buffers not counted)."""

    macs: Count
    params: Count


def count(net: nn.Module, shape: Sequence[int]) -> Cost:
    """Count the cost of a network whose forward takes one image batch; only shapes are computed, no values.

    Args:
        shape: of one image (C, H, W).

    >>> count(nn.Conv2d(3, 8, 3, padding=1), (3, 10, 10))
    Cost(macs=21600, params=224)
    """
    macs = sum(_flops(net, shape).get("Global", {}).values()) // 2
    return Cost(macs, sum(parameter.numel() for parameter in net.parameters()))


def layer_macs(net: nn.Module, shape: Sequence[int]) -> dict[str, int]:
    """Multiply-accumulates of one image in each submodule, by dotted name; a layer that runs twice counts twice.

    >>> layer_macs(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), (3, 10, 10))
    {'0': 2400}
    """
    return {key: sum(ops.values()) // 2 for key, ops in _flops(net, shape).items() if key not in ("", "Global")}


def _flops(net: nn.Module, shape: Sequence[int]) -> dict[str, dict[object, int]]:
    """PyTorch's own counter (two operations a multiply-accumulate), on tensors that have shapes but no contents.

    By dotted name: the counter puts the name of the network's class before it, which a copy may have changed.
    """
    shadow = copy.deepcopy(net).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.empty(1, *shape, device="meta"))
    prefix = type(shadow).__name__
    return {name.removeprefix(prefix).lstrip("."): dict(ops) for name, ops in counter.get_flop_counts().items()}
