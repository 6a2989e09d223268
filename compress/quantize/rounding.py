"""Rounding a layer's weights so that their errors cancel in what the layer computes.

Rounding each weight to the nearest integer makes the weights' error least; what counts is the error of the output on
real inputs. Frantar et al. 2022 (GPTQ, arXiv:2210.17323; after LeCun et al. 1990 and Hassibi et al. 1993) round one
input after the other and let the inputs not yet rounded make up for the error so far.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.quantize.placement import WEIGHT_HIGH

_DAMPING = 0.01  # of the mean diagonal, added to it: inputs that are (nearly) linear combinations of others
_BLOCK = 128  # inputs whose corrections are collected before the rest is touched; speed only
_PIECE = 1152  # inputs: 128 channels of a 3x3 convolution
_POSITIONS = 64  # of an image's output pixels, whose input patches are looked at


@torch.no_grad()
def round_to_nearest(weight: Tensor, scale: Tensor) -> Tensor:
    """Each weight (C_out, ...) to the nearest multiple of its channel's scale (C_out,)."""
    step = scale.reshape(-1, *[1] * (weight.dim() - 1))
    return (weight / step).round().clamp(-WEIGHT_HIGH, WEIGHT_HIGH) * step


@torch.no_grad()
def round_layer(layer: nn.Conv2d | nn.Linear, scale: Tensor, inputs: Tensor, generator: torch.Generator) -> Tensor:
    """A layer's weight, rounded for the least squared error of its output.

    Args:
        scale: (C_out,).
        inputs: what the layer gets, quantized: (N, C, H, W), or (N, ..., C) for a fully connected layer.
        generator: chooses the pixels that are looked at.

    Returns:
        multiples of the scale, in the weight's shape.
    """
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    columns = _columns(layer, inputs, generator).chunk(groups, dim=1)
    parts = zip(layer.weight.flatten(1).chunk(groups), scale.chunk(groups), columns, strict=True)
    return torch.cat([_in_pieces(*part) for part in parts]).reshape(layer.weight.shape)


def _in_pieces(weight: Tensor, scale: Tensor, columns: Tensor) -> Tensor:
    """``gptq`` on pieces of the inputs, which bounds the cubic cost; errors cancel within a piece."""
    pieces = zip(torch.split(weight, _PIECE, dim=1), torch.split(columns, _PIECE, dim=1), strict=True)
    return torch.cat([gptq(w, scale, x.T @ x / len(x)) for w, x in pieces], dim=1)


def gptq(weight: Tensor, scale: Tensor, moments: Tensor) -> Tensor:
    """Round a matrix for the least error of ``weight @ x``.

    Args:
        weight: (C_out, K).
        scale: (C_out,) steps.
        moments: (K, K), the mean of x xᵀ over the inputs x.

    Returns:
        (C_out, K), multiples of the scale, at most 127 of them. Being greedy it can lose to rounding to nearest; a
        channel where it does is rounded to nearest, so the error is never more than that one's.
    """
    true, moments = moments, moments.clone()
    diagonal = moments.diagonal()
    dead = diagonal == 0  # inputs that are always 0: their weights matter to nobody
    diagonal.add_(_DAMPING * diagonal.sum() / max(int((~dead).sum()), 1))
    diagonal[dead] = 1
    order = diagonal.argsort(descending=True, stable=True)  # the inputs that matter most first
    factor = torch.linalg.cholesky(moments[order][:, order])
    upper = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
    left = weight[:, order].clone()
    rounded = torch.empty_like(left)
    for start in range(0, left.shape[1], _BLOCK):
        end = min(start + _BLOCK, left.shape[1])
        errors = left.new_empty(len(left), end - start)
        for k in range(start, end):
            rounded[:, k] = (left[:, k] / scale).round().clamp(-WEIGHT_HIGH, WEIGHT_HIGH) * scale
            error = (left[:, k] - rounded[:, k]) / upper[k, k]
            left[:, k:end] -= error[:, None] * upper[k, k:end]
            errors[:, k - start] = error
        left[:, end:] -= errors @ upper[start:end, end:]
    rounded, nearest = rounded[:, order.argsort()], round_to_nearest(weight, scale)
    loses = _error(weight - rounded, true) > _error(weight - nearest, true)
    return torch.where(loses[:, None], nearest, rounded)


def _error(difference: Tensor, moments: Tensor) -> Tensor:
    """(C_out,): the mean squared error of each channel's output."""
    return (difference @ moments * difference).sum(1)


def _columns(layer: nn.Conv2d | nn.Linear, inputs: Tensor, generator: torch.Generator) -> Tensor:
    """(samples, inputs of all groups): what the layer's weights are multiplied with, at pixels chosen at random."""
    if isinstance(layer, nn.Linear):
        return inputs.flatten(0, -2)
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    patches = padded.unfold(2, dh * (kh - 1) + 1, sh).unfold(3, dw * (kw - 1) + 1, sw)[..., ::dh, ::dw]
    height, width = patches.shape[2:4]
    chosen = torch.randperm(height * width, generator=generator)[:_POSITIONS]
    picked = patches[:, :, chosen // width, chosen % width]  # (N, C, samples, kh, kw)
    return picked.transpose(1, 2).flatten(0, 1).flatten(1)
