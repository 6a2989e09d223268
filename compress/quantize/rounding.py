"""From a layer's weights to integers: the nearest ones, or those whose errors cancel in what the layer computes.

Rounding each weight to the nearest integer makes the weights' error least; what counts is the error of the output on
real inputs. Frantar et al. 2022 (GPTQ, arXiv:2210.17323; after LeCun et al. 1990 and Hassibi et al. 1993) round one
input after the other and let the inputs not yet rounded make up for the error so far.

Where pairs of products must fit into int16 (``pairs``), both ways keep to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.graph.patches import inputs_at, output_size, unit_of
from compress.quantize.pairs import PAIR_HIGH, pairs
from compress.quantize.quantizer import TINY, WEIGHT_HIGH, Weight

_DAMPING = 0.01  # of the mean diagonal, added to it: inputs that are (nearly) linear combinations of others
_BLOCK = 128  # inputs whose corrections are collected before the rest is touched; speed only
_PIECE = 1152  # inputs: 128 channels of a 3x3 convolution
_POSITIONS = 64  # of an image's output pixels, whose input patches are looked at
_REACHES = 9  # that ``fitting_reach`` tries


def nearest(steps: Tensor, pairs_fit: bool) -> Tensor:
    """The nearest integers in -127..127; with ``pairs_fit`` the nearest whose pairs cannot overflow.

    A pair that would overflow gives up half of what is too much at either weight. With an even number of input channels
    the squared error is the least possible; with an odd number, where a weight is in two pairs, it is close to that.

    Args:
        steps: weights in units of their scale, (C_out, C_in of a group, kh, kw), or (C_out, C_in).

    >>> nearest(torch.tensor([[100.2, 60.4]]), True), nearest(torch.tensor([[100.2, -60.4]]), True)
    (tensor([[84., 44.]]), tensor([[100., -60.]]))
    """
    rounded = steps.round().clamp(-WEIGHT_HIGH, WEIGHT_HIGH)
    if not pairs_fit:
        return rounded
    exact, whole = steps.flatten(1).clone(), rounded.flatten(1).clone()
    for chosen in index_pairs(steps):
        channel, pair = (whole[:, chosen].sum(2).abs() > PAIR_HIGH).nonzero(as_tuple=True)
        at = channel[:, None], chosen[pair]
        whole[at] = exact[at] = _summing_to_limit(exact[at])
    return whole.reshape(steps.shape)


def index_pairs(weight: Tensor) -> list[Tensor]:
    """``pairs`` of a weight (C_out, ...), to index it flattened by channel."""
    return [torch.from_numpy(chosen).to(weight.device) for chosen in pairs(tuple(weight.shape[1:]))]


def _summing_to_limit(steps: Tensor) -> Tensor:
    """The nearest integers whose sum is the largest that fits, for pairs (P, 2) that are beyond it."""
    sign = steps.sum(1).sign()
    first, second = (steps * sign[:, None]).unbind(1)
    kept = ((first - second + PAIR_HIGH) / 2).round().clamp(PAIR_HIGH - WEIGHT_HIGH, WEIGHT_HIGH)
    return torch.stack([kept, PAIR_HIGH - kept], 1) * sign[:, None]


def quantize_weight(q: Weight, weight: Tensor) -> Tensor:
    """The int8 integers of a weight (C_out, ...).

    >>> quantize_weight(Weight("fc", (0.5,)), torch.tensor([[0.6, -100.0]]))
    tensor([[   1, -127]], dtype=torch.int8)
    """
    return nearest(in_steps(weight, torch.tensor(q.scale)), q.pairs_fit).to(torch.int8)


def in_steps(weight: Tensor, scale: Tensor) -> Tensor:
    """A weight (C_out, ...) in units of its channels' scales (C_out,), with torch.fake_quantize's order of rounding."""
    return weight * (1.0 / per_channel(scale, weight))


def per_channel(scale: Tensor, weight: Tensor) -> Tensor:
    """A scale (C_out,) in a shape that multiplies ``weight``."""
    return scale.reshape(-1, *[1] * (weight.dim() - 1))


@torch.no_grad()
def round_to_nearest(weight: Tensor, scale: Tensor, pairs_fit: bool = False) -> Tensor:
    """Each weight (C_out, ...) to the nearest multiple of its channel's scale (C_out,)."""
    return nearest(in_steps(weight, scale), pairs_fit) * per_channel(scale, weight)


@torch.no_grad()
def fitting_reach(weight: Tensor, magnitude: Tensor) -> Tensor:
    """How far each channel's integers should reach, for the least squared error where pairs must fit into int16.

    Between two ends: integers that reach to the largest weight and no further, with the few pairs in danger clipped,
    and integers so coarse that no pair is. (To halve the range of all weights, as is usual, takes the scale to twice
    the first.)

    Args:
        weight: (C_out, ...).
        magnitude: (C_out,), the largest |w|.

    Returns:
        (C_out,), the value of the largest integer; at least ``magnitude``.
    """
    flat = weight.flatten(1)
    safe = magnitude
    for chosen in index_pairs(weight):
        largest = flat[:, chosen].sum(2).abs().amax(1) if len(chosen) else magnitude
        safe = torch.maximum(safe, largest * (WEIGHT_HIGH / PAIR_HIGH))
    best, least = safe, torch.full_like(safe, torch.inf)
    for share in torch.linspace(1, 0, _REACHES).tolist():
        reach = magnitude + share * (safe - magnitude)
        rounded = round_to_nearest(weight, (reach / WEIGHT_HIGH).clamp(min=TINY), pairs_fit=True)
        error = (rounded - weight).flatten(1).square().sum(1)
        best, least = torch.where(error < least, reach, best), torch.minimum(error, least)
    return best


@torch.no_grad()
def round_layer(
    layer: nn.Conv2d | nn.Linear, scale: Tensor, inputs: Tensor, generator: torch.Generator, pairs_fit: bool = False
) -> Tensor:
    """A layer's weight, rounded for the least squared error of its output.

    Args:
        scale: (C_out,).
        inputs: what the layer gets, quantized: (N, C, H, W), or (N, ..., C) for a fully connected layer.
        generator: chooses the pixels that are looked at.
        pairs_fit: no pair of products may overflow int16; see ``pairs``.

    Returns:
        multiples of the scale, in the weight's shape.
    """
    weight = layer.weight
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    seen = _columns(layer, inputs, generator)
    columns = (seen / unit_of(seen)).chunk(groups, dim=1)
    fallback = round_to_nearest(weight, scale, pairs_fit).flatten(1)
    size = 2 * weight[0, 0].numel()  # neighbouring channels stay together
    size *= max(1, _PIECE // size)
    near = _neighbours(weight) if pairs_fit else [[] for _ in fallback[0]]
    parts = zip(weight.flatten(1).chunk(groups), scale.chunk(groups), columns, fallback.chunk(groups), strict=True)
    rounded = torch.cat([_in_pieces(*part, near, size) for part in parts]).reshape(weight.shape)
    return round_to_nearest(rounded, scale, pairs_fit)  # pairs across pieces, where channels are odd in number


def _in_pieces(
    weight: Tensor, scale: Tensor, columns: Tensor, fallback: Tensor, near: Sequence[Sequence[int]], size: int
) -> Tensor:
    """``gptq`` on pieces of the inputs, which bounds the cubic cost; errors cancel within a piece."""
    rounded = []
    for start in range(0, weight.shape[1], size):
        piece = slice(start, start + size)
        x = columns[:, piece]
        inside = [[i - start for i in others if 0 <= i - start < x.shape[1]] for others in near[piece]]
        rounded.append(gptq(weight[:, piece], scale, x.T @ x / len(x), fallback[:, piece], inside))
    return torch.cat(rounded, dim=1)


def _neighbours(weight: Tensor) -> list[list[int]]:
    """For each input, the inputs whose products with it are added in int16."""
    found: list[list[int]] = [[] for _ in range(weight[0].numel())]
    for chosen in index_pairs(weight):
        for a, b in chosen.tolist():
            found[a].append(b)
            found[b].append(a)
    return found


def gptq(
    weight: Tensor, scale: Tensor, moments: Tensor, fallback: Tensor, neighbours: Sequence[Sequence[int]]
) -> Tensor:
    """Round a matrix for the least error of ``weight @ x``.

    Args:
        weight: (C_out, K).
        scale: (C_out,) steps.
        moments: (K, K), the mean of x xᵀ over the inputs x.
        fallback: (C_out, K), another way to round it. Being greedy this one can lose to it; a channel where it does
            is taken from there, so the error is never more than that one's.
        neighbours: for each input, those with which its products are added as a pair that must fit into int16.

    Returns:
        (C_out, K), multiples of the scale, at most 127 of them.
    """
    true, moments = moments, moments.clone()
    diagonal = moments.diagonal()
    dead = diagonal == 0  # inputs that are always 0: their weights matter to nobody
    diagonal.add_(_DAMPING * diagonal.sum() / max(int((~dead).sum()), 1))
    diagonal[dead] = 1
    order = diagonal.argsort(descending=True, stable=True)  # the inputs that matter most first
    place = order.argsort()
    near = [[int(place[i]) for i in neighbours[k]] for k in order.tolist()]
    factor = torch.linalg.cholesky(moments[order][:, order])
    upper = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
    left = weight[:, order].clone()
    whole = torch.empty_like(left)
    for start in range(0, left.shape[1], _BLOCK):
        end = min(start + _BLOCK, left.shape[1])
        errors = left.new_empty(len(left), end - start)
        for k in range(start, end):
            steps = (left[:, k] / scale).clamp(-WEIGHT_HIGH, WEIGHT_HIGH)
            for i in near[k]:
                other = whole[:, i] if i < k else _share(left[:, i] / scale, steps)
                steps = steps.clamp(-PAIR_HIGH - other, PAIR_HIGH - other)
            whole[:, k] = steps.round()
            error = (left[:, k] - whole[:, k] * scale) / upper[k, k]
            left[:, k:end] -= error[:, None] * upper[k, k:end]
            errors[:, k - start] = error
        left[:, end:] -= errors @ upper[start:end, end:]
    rounded = whole[:, place] * scale[:, None]
    loses = _error(weight - rounded, true) > _error(weight - fallback, true)
    return torch.where(loses[:, None], fallback, rounded)


def _share(steps: Tensor, others: Tensor) -> Tensor:
    """What remains of ``steps`` when each of a pair gives up half of what is too much."""
    steps = steps.clamp(-WEIGHT_HIGH, WEIGHT_HIGH)
    total = steps + others
    return steps - (total - total.clamp(-PAIR_HIGH, PAIR_HIGH)) / 2


def _error(difference: Tensor, moments: Tensor) -> Tensor:
    """(C_out,): the mean squared error of each channel's output."""
    return (difference @ moments * difference).sum(1)


def _columns(layer: nn.Conv2d | nn.Linear, inputs: Tensor, generator: torch.Generator) -> Tensor:
    """(samples, inputs of all groups): what the layer's weights are multiplied with, at pixels chosen at random."""
    if isinstance(layer, nn.Linear):
        return inputs.flatten(0, -2)
    height, width = output_size(layer, inputs)
    chosen = torch.randperm(height * width, generator=generator)[:_POSITIONS]
    return inputs_at(layer, inputs, chosen.expand(len(inputs), -1), width)
