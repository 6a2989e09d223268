"""The input patches that a layer reads for its outputs at some positions, as rows of a matrix product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEAST = -100  # exponent of a power of two: smaller inputs count as zero


def inputs_at(layer: nn.Module, x: Tensor, positions: Tensor, width: int) -> Tensor:
    """Gather the input patches of ``layer`` for its outputs at some positions: (N * P, C * kernel), channel by channel.

    The patches are gathered one kernel offset after the other; the whole map is never unfolded.

    Args:
        x: (N, C, H, W).
        positions: (N, P) flat positions in the output map.
        width: width of the output map.
    """
    assert isinstance(layer, nn.Conv2d)
    x = _padded(layer, x).permute(0, 2, 3, 1)
    rows, columns = positions // width * layer.stride[0], positions % width * layer.stride[1]
    image = torch.arange(len(x))[:, None]
    taps = [
        x[image, rows + i * layer.dilation[0], columns + j * layer.dilation[1]]
        for i in range(layer.kernel_size[0])
        for j in range(layer.kernel_size[1])
    ]
    return torch.stack(taps, -1).flatten(0, 1).flatten(1)


def output_size(conv: nn.Conv2d, x: Tensor) -> tuple[int, int]:
    """Height and width of a convolution's output for inputs (N, C, H, W).

    >>> output_size(nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.empty(1, 3, 9, 8))
    (5, 4)
    """
    padded = _padded(conv, x).shape[-2:]
    height, width = (
        (size - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, dilation in zip(padded, conv.kernel_size, conv.stride, conv.dilation, strict=True)
    )
    return height, width


def values_at(y: Tensor, positions: Tensor) -> Tensor:
    """The values of y (N, C, H, W) at positions (N, P), as rows (N * P, C)."""
    image = torch.arange(len(y))[:, None]
    return y.permute(0, 2, 3, 1).flatten(1, 2)[image, positions].flatten(0, 1)


def unit_of(x: Tensor) -> float:
    """The power of two just above the largest |x|, at most 1. In it, squares of tiny values do not become zero."""
    return float(2.0 ** max(_LEAST, min(0, int(x.abs().amax().frexp().exponent))))


def _padded(conv: nn.Conv2d, x: Tensor) -> Tensor:
    if isinstance(conv.padding, str):
        total = [
            d * (k - 1) if conv.padding == "same" else 0 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)
        ]
        (top, bottom), (left, right) = ((t // 2, t - t // 2) for t in total)
    else:
        (top, left), (bottom, right) = conv.padding, conv.padding
    if not any((top, bottom, left, right)):
        return x
    return F.pad(x, (left, right, top, bottom))
