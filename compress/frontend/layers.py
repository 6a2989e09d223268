"""Layers that PyTorch lacks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class FrozenBatchNorm(nn.BatchNorm2d):
    """A batch norm that its network never trains: it stays in eval mode, so its statistics do not change.

    >>> FrozenBatchNorm(4).train().training
    False
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.training = False

    def train(self, mode: bool = True) -> FrozenBatchNorm:
        """Stay in eval mode."""
        super().train(False)
        return self


class Removed(nn.Module):
    """Returns zeros like its input, in place of the first layer of a removed residual branch.

    It marks the branch, which ``removal`` drops from the graph; a raised network does not run it.

    >>> Removed()(torch.ones(1, 2)).tolist()
    [[0.0, 0.0]]
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> zeros of the same shape."""
        return torch.zeros_like(x)
