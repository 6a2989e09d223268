"""What stands where a whole residual branch was removed."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Removed(nn.Module):
    """Zeros like its input, in the place of the first layer of a removed residual branch.

    So the block computes ``x + 0`` when it is run as it is written; ``graph.removal`` takes both out of its graph.

    >>> Removed()(torch.ones(1, 2)).tolist()
    [[0.0, 0.0]]
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> zeros of the same shape."""
        return torch.zeros_like(x)
