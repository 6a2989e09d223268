"""Weights that a checkpoint holds in parts, made whole: weight norm, spectral norm and pruning masks.

>>> state = {"fc.weight_orig": torch.ones(1, 2), "fc.weight_mask": torch.tensor([[1.0, 0.0]]), "fc.bias": torch.ones(1)}
>>> {name: tensor.tolist() for name, tensor in whole(state).items()}
{'fc.bias': [1.0], 'fc.weight': [[1.0, 0.0]]}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class _Form(NamedTuple):
    """How ``nn.utils`` splits a weight.

    Attributes:
        parts: the names of the parts, with ``{}`` for the name of the weight; the first one is of this form only if
            the others are there too.
        join: makes the weight of the parts.
    """

    parts: tuple[str, ...]
    join: Callable[..., Tensor]


def _masked(weight: Tensor, mask: Tensor) -> Tensor:
    _check(weight.shape == mask.shape)
    return weight * mask


def _weight_norm(length: Tensor, direction: Tensor) -> Tensor:
    """The direction is scaled to the length, which has one value for each index of one dimension, or one for all."""
    dims = [dim for dim in range(direction.dim()) if length.numel() == 1 or length.shape[dim] == 1]
    kept = [dim for dim in range(direction.dim()) if dim not in dims]
    _check(length.dim() in (0, direction.dim()) and all(length.shape[dim] == direction.shape[dim] for dim in kept))
    present: Tensor = torch.linalg.vector_norm(direction, dim=dims, keepdim=True)
    return direction * (length / present)


def _spectral_norm(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The weight divided by its largest singular value, which the two vectors estimate."""
    axes = [axis for axis in range(weight.dim()) if weight.shape[axis] == len(left)]
    _check(bool(axes) and weight.numel() == len(left) * len(right))
    matrix = weight.movedim(axes[0], 0).flatten(1)
    return weight / torch.dot(left, matrix @ right)


def _check(fits: bool) -> None:
    if not fits:
        raise ValueError


_FORMS = (
    _Form(("{}_orig", "{}_mask"), _masked),
    _Form(("{}_g", "{}_v"), _weight_norm),
    _Form(("parametrizations.{}.original0", "parametrizations.{}.original1"), _weight_norm),
    _Form(("{}_orig", "{}_u", "{}_v"), _spectral_norm),
    _Form(("parametrizations.{}.original", "parametrizations.{}.0._u", "parametrizations.{}.0._v"), _spectral_norm),
)


def whole(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with whole weights in the place of their parts; parts that do not fit one another stay as they are."""
    result = dict(state)
    for form in _FORMS:
        before, _, after = form.parts[0].partition("{}")
        for name in [name for name in result if name.endswith(after)]:
            layer, _, weight = name.removesuffix(after).rpartition(".")
            layer = f"{layer}." if layer else ""
            if not layer.endswith(before):
                continue
            layer = layer.removesuffix(before)
            parts = [layer + part.format(weight) for part in form.parts]
            if not all(part in result for part in parts):
                continue
            try:
                joined = form.join(*(result[part].float() for part in parts))
            except (ValueError, RuntimeError, IndexError):  # shapes that do not go together
                continue
            for part in parts:
                del result[part]
            result[layer + weight] = joined
    return result
