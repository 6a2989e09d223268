"""Show a teacher the images of a student that has another input size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from calibration.preprocess import Preprocess


class AtItsSize(nn.Module):
    """A network that gets images of another size than its own, and resizes them.

    A network is used to objects of one size: one that was trained at 224 pixels and sees an image of 128 finds far more
    of its classes when the image is enlarged, although that adds nothing to it (see Touvron et al. 2019,
    arXiv:1906.06423).

    Args:
        scale: by how much images are enlarged: height, width.

    >>> AtItsSize(nn.Identity(), (1.75, 1.75))(Tensor(1, 3, 128, 128)).shape
    torch.Size([1, 3, 224, 224])
    """

    def __init__(self, net: nn.Module, scale: tuple[float, float]) -> None:
        super().__init__()
        self.net, self.scale = net, scale

    def forward(self, x: Tensor) -> object:
        """Images (N, C, H, W)."""
        size = [round(side * factor) for side, factor in zip(x.shape[2:], self.scale, strict=True)]
        return self.net(F.interpolate(x, size=size, mode="bicubic", antialias=True))


def at_its_size(net: nn.Module, own: Preprocess, given: Preprocess) -> nn.Module:
    """A network whose images are prepared as ``own``, for images that are prepared as ``given``."""
    if own.sides == given.sides:
        return net
    height, width = (to / of for to, of in zip(own.sides, given.sides, strict=True))
    return AtItsSize(net, (height, width))
