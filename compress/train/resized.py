"""Show a teacher the images of a student that has another input size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from calibration.preprocess import Preprocess


class ResizedInput(nn.Module):
    """A network that resizes its images before it looks at them.

    A network expects objects of one size. One that was trained at 224 pixels classifies far more images of 128 pixels
    correctly when they are enlarged, although that adds nothing to them (see Touvron et al. 2019, arXiv:1906.06423).

    Args:
        scale: factors of the height and the width.

    >>> ResizedInput(nn.Identity(), (1.75, 1.75))(Tensor(1, 3, 128, 128)).shape
    torch.Size([1, 3, 224, 224])
    """

    def __init__(self, net: nn.Module, scale: tuple[float, float]) -> None:
        super().__init__()
        self.net, self.scale = net, scale

    def forward(self, x: Tensor) -> object:
        """Images (N, C, H, W)."""
        size = [round(side * factor) for side, factor in zip(x.shape[2:], self.scale, strict=True)]
        return self.net(F.interpolate(x, size=size, mode="bicubic", antialias=True))


def at_own_size(net: nn.Module, own: Preprocess, given: Preprocess) -> nn.Module:
    """A network whose images are prepared as ``own``, for images that are prepared as ``given``."""
    if own.sides == given.sides:
        return net
    height, width = (to / of for to, of in zip(own.sides, given.sides, strict=True))
    return ResizedInput(net, (height, width))
