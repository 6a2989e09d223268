"""Which weights a processor multiplies and adds as a pair, and when such a sum overflows.

Without VNNI, x86 kernels multiply uint8 activations by int8 weights with VPMADDUBSW: two products are added in int16,
and what does not fit is clipped without a word (onnxruntime#6004). An activation is 0 to 255, so the sum
``a0 * w0 + a1 * w1`` fits whatever the activations are if, and only if, ``|w0 + w1| <= 128``: 255 * 128 is 32640, and
int16 ends at 32767. Weights of opposite signs always fit.

>>> overflowing(np.array([[127, 1, 127, 2], [-100, 100, -64, -64]]))
array([[False,  True],
       [False, False]])
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAIR_HIGH = 128


@cache
def pairs(shape: tuple[int, ...]) -> tuple[NDArray[np.int64], ...]:
    """The pairs of weights of one output channel that kernels may add.

    Kernels read an output channel's weights in the order (height, width, input channel). With an even number of input
    channels that gives the channels 0 and 1, 2 and 3, ... at one place of the kernel, in every engine. With an odd
    number it depends on the engine: ONNX Runtime pairs a channel without a neighbour with the next place's first,
    OpenVINO with none; so all neighbours count there. With one channel OpenVINO's AVX-512 kernels go down the columns,
    so those neighbours count too. ``docs/decisions/0013-pairs.md`` says how that was found.

    Args:
        shape: of the output channel's weights: (C_in of a group, kh, kw), or (C_in,) for a fully connected layer.

    Returns:
        sets of pairs, each (P, 2): indices into the flattened weights. In a set no weight occurs twice. ONNX Runtime's
        pairs are the first set.

    >>> pairs((3, 1, 2))[0]  # channels 0 and 1 of the first place; its 2 with the next one's 0; that one's 1 and 2
    array([[0, 2],
           [4, 1],
           [3, 5]])
    """
    channels, height, width = shape if len(shape) == 3 else (*shape, 1, 1)
    index = np.arange(channels * height * width).reshape(channels, height, width)
    orders = [index.transpose(1, 2, 0).ravel()]
    if channels == 1:
        orders.append(index.transpose(2, 1, 0).ravel())
    starts = (0,) if channels % 2 == 0 else (0, 1)
    return tuple(order[start:][: (len(order) - start) // 2 * 2].reshape(-1, 2) for order in orders for start in starts)


def overflowing(integers: NDArray[Any]) -> NDArray[np.bool_]:
    """Which pairs can overflow, whatever kernel adds them.

    Args:
        integers: int8 weights (C_out, C_in of a group, kh, kw), or (C_out, C_in).

    Returns:
        (C_out, pairs of all sets).
    """
    flat = integers.reshape(len(integers), -1).astype(np.int16)
    sums = [flat[:, chosen].sum(2) for chosen in pairs(integers.shape[1:])]
    return np.concatenate([abs(total) > PAIR_HIGH for total in sums], axis=1)
