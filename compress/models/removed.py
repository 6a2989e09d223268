"""The placeholder for a removed residual branch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Removed(nn.Module):
    """Returns zeros like its input, in place of the first layer of a removed residual branch.

    So the block computes ``x + 0`` if it is run as written; ``graph.removal`` drops both from its graph.

    >>> Removed()(torch.ones(1, 2)).tolist()
    [[0.0, 0.0]]
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> zeros of the same shape."""
        return torch.zeros_like(x)
