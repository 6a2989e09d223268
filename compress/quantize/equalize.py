"""Cross-layer equalization: give the channels of a tensor like ranges, without changing what the network computes.

A tensor has one scale for all of its channels; a channel that is small beside the others is left with few integers. As
relu(s x) = s relu(x), the layers that write a channel can be divided by a factor and the layers that read it multiplied
by it (Nagel et al. 2019, arXiv:1906.04721, section 4.1). Which layers those are is what pruning knows too: a residual
stream is scaled as a whole, all of its writers and readers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from compress.graph.groups import Group, Slot, couple

_SHARE = 0.5  # of the ratio between channels' ranges (in logarithms) goes over to the readers' weights, rounded too
_LEAST = 1 / 64
_TOLERANCE = 1e-3


@torch.no_grad()
def equalize(net: nn.Module, images: Iterable[Tensor]) -> nn.Module | None:
    """A copy of the network with equalized channels; None where that is not the same function (ReLU6, SiLU).

    Args:
        net: BN-folded, traceable.
        images: batches (N, C, H, W) on which channels are observed.

    Raises:
        ModelError: channels cannot be followed through the network; see ``couple``.
    """
    batches = list(images)
    groups = [group for group in couple(net, batches[0].shape[1:]) if _can_scale(net, group)]
    power = _power(net, {slot.layer for group in groups for slot in group.readers}, batches)
    result = copy.deepcopy(net)
    for group in groups:
        size = torch.stack([power[slot.layer][_positions(slot)].amax(1) for slot in group.readers]).amax(0).sqrt()
        factor = (size / size.max()).clamp(min=_LEAST).pow(_SHARE)
        factor[size == 0] = 1
        for slot in group.readers:
            _scale_inputs(result.get_submodule(slot.layer), slot, factor)
        for slot in group.writers:
            _scale_outputs(result.get_submodule(slot.layer), slot, 1 / factor)
    same = all(_close(a, b) for a, b in zip(_outputs(net, batches[0]), _outputs(result, batches[0]), strict=True))
    return result if same else None


def _can_scale(net: nn.Module, group: Group) -> bool:
    """Whether all layers at the group have weights to scale: a norm or an option A shortcut has none."""
    layers = [net.get_submodule(slot.layer) for slot in (*group.writers, *group.readers)]
    return bool(group.readers) and not group.norms and all(isinstance(x, nn.Conv2d | nn.Linear) for x in layers)


def _power(net: nn.Module, layers: Iterable[str], batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """(C_in,) for each layer: the sum over images of the mean square of its input channels."""
    power: dict[str, Tensor] = {}
    handles = []
    for name in layers:

        def see(layer: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            axes = [axis for axis in range(inputs[0].dim()) if axis != 1]
            power[name] = power.get(name, torch.zeros(())) + inputs[0].square().mean(axes) * len(inputs[0])

        handles.append(net.get_submodule(name).register_forward_pre_hook(see))
    for batch in batches:
        net(batch)
    for handle in handles:
        handle.remove()
    return power


def _positions(slot: Slot) -> Tensor:
    """(units, channels a unit)."""
    return torch.tensor(slot.channels)


def _on_channels(count: int, slot: Slot, factor: Tensor) -> Tensor:
    """(count,): each unit's factor at its channels, 1 elsewhere."""
    result = torch.ones(count)
    positions = _positions(slot)
    result[positions] = factor[:, None].expand_as(positions)
    return result


def _scale_inputs(layer: nn.Module, slot: Slot, factor: Tensor) -> None:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    if isinstance(layer, nn.Linear):
        layer.weight.mul_(_on_channels(layer.in_features, slot, factor))
        return
    inputs = _on_channels(layer.in_channels, slot, factor).reshape(layer.groups, 1, -1)
    outputs = layer.out_channels // layer.groups
    layer.weight.mul_(inputs.expand(-1, outputs, -1).reshape(layer.out_channels, -1, 1, 1))


def _scale_outputs(layer: nn.Module, slot: Slot, factor: Tensor) -> None:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    assert isinstance(layer.weight, Tensor)
    outputs = _on_channels(len(layer.weight), slot, factor)
    layer.weight.mul_(outputs.reshape(-1, *[1] * (layer.weight.dim() - 1)))
    if isinstance(layer.bias, Tensor):
        layer.bias.mul_(outputs)


def _outputs(net: nn.Module, images: Tensor) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(net(images)) if isinstance(leaf, Tensor)]


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).square().sum() <= _TOLERANCE**2 * a.square().sum())
