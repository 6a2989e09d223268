"""The CIFAR ResNets of He et al. 2015 (arXiv:1512.03385, section 4.2), depth 6n+2.

Parameter names are those of the checkpoints in common use (conv1, bn1, layer1..3, linear). Option A shortcuts have no
weights: every second pixel, and zeros for the channels that are new; option B shortcuts are 1x1 convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelectPad(nn.Module):
    """Option A shortcut: strided subsampling; output channel k is input channel ``source[k]``, or zeros where -1.

    A table rather than a pad width, so that pruning can drop channels on either side of it.

    >>> SelectPad([-1, 0, 1, -1], stride=2)(torch.ones(1, 2, 4, 4)).shape
    torch.Size([1, 4, 2, 2])
    """

    index: Tensor
    gate: Tensor

    def __init__(self, source: Sequence[int], stride: int) -> None:
        super().__init__()
        self.source = tuple(source)
        self.stride = stride
        table = torch.tensor(self.source)
        self.register_buffer("index", table.clamp(min=0), persistent=False)
        self.register_buffer("gate", (table >= 0).float().view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, len(source), ceil(H/stride), ceil(W/stride))."""
        return x[:, :, :: self.stride, :: self.stride].index_select(1, self.index) * self.gate

    def extra_repr(self) -> str:
        return f"{sum(s >= 0 for s in self.source)} of {len(self.source)} channels, stride={self.stride}"


class CifarBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, width_in: int, width: int, stride: int, option: Literal["A", "B"]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width:
            if option == "A":
                before = (width - width_in) // 2
                after = width - width_in - before
                self.shortcut = nn.Sequential(SelectPad([-1] * before + [*range(width_in)] + [-1] * after, stride))
            else:
                self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet-(6n+2) for 32x32 images; widths 16, 32, 64."""

    def __init__(self, depth: int, num_classes: int = 10, option: Literal["A", "B"] = "A") -> None:
        super().__init__()
        if (depth - 2) % 6:
            raise ValueError(f"depth must be 6n+2, not {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._layer(16, 16, blocks, 1, option)
        self.layer2 = self._layer(16, 32, blocks, 2, option)
        self.layer3 = self._layer(32, 64, blocks, 2, option)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _layer(width_in: int, width: int, blocks: int, stride: int, option: Literal["A", "B"]) -> nn.Sequential:
        first = CifarBlock(width_in, width, stride, option)
        return nn.Sequential(first, *(CifarBlock(width, width, 1, option) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = self.linear(x)
        return logits
