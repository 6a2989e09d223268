"""Cut channels and blocks out of a network, and verify that the rest computes what the masked network computes."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from compress.errors import ModelError
from compress.frontend.layers import Removed
from compress.frontend.network import RaisedNetwork
from compress.graph.groups import Coupling
from compress.graph.segments import Segment
from compress.models.layers import cut_layer
from compress.models.shapes import replace_module
from compress.prune.importance.masks import masked

TOLERANCE = 1e-5


def cut(
    net: nn.Module, coupling: Coupling, kept: Mapping[str, Sequence[int]], removed: Collection[Segment] = ()
) -> nn.Module:
    """A copy of ``net`` without some channels and branches; hooks on the layers that are cut are left behind.

    The first layer of a removed branch becomes ``Removed`` and the others ``nn.Identity``: names stay, the weights go,
    and a raised network does not run the branch any more.

    Args:
        kept: unit indices by group name; a group that is not named keeps all.
        removed: removable segments that go as a whole.

    Raises:
        ModelError: ``kept`` names a group or a unit that is not there, or keeps none of a group, or a segment cannot
            be removed.
    """
    removed_inputs, removed_outputs = removed_positions(coupling, kept)
    gone = _branches(removed)
    net = copy.deepcopy(net)
    for layer in (removed_inputs.keys() | removed_outputs.keys()) - gone.keys():
        old = net.get_submodule(layer)
        new = cut_layer(old, removed_inputs[layer], removed_outputs[layer])
        new.train(old.training)
        replace_module(net, layer, new)
    for layer, stand_in in gone.items():
        replace_module(net, layer, stand_in.train(net.get_submodule(layer).training))
    if isinstance(net, RaisedNetwork):
        net.recompile()  # without the branches
    return net


def verify(
    net: nn.Module,
    pruned: nn.Module,
    coupling: Coupling,
    kept: Mapping[str, Sequence[int]],
    example: Tensor,
    removed: Collection[Segment] = (),
) -> float:
    """Compare the cut network with the masked one on ``example`` (N, C, H, W), both in float64.

    Returns:
        the largest difference of any output, over the largest output.

    Raises:
        ModelError: it exceeds ``TOLERANCE``, or the output is not finite.
    """
    reference, pruned = (copy.deepcopy(each).double().eval() for each in (net, pruned))
    with torch.no_grad():
        with masked(reference, coupling, kept, removed):
            expected = _tensors(reference(example.double()))
        found = _tensors(pruned(example.double()))
    worst = 0.0
    for want, have in zip(expected, found, strict=True):
        if not have.isfinite().all():
            raise ModelError(
                "the pruned network's output is not finite",
                remedy="evaluate the float network: it may have diverged, or its input may not be normalised as it was",
            )
        scale = max(float(want.abs().max()), torch.finfo(want.dtype).tiny)
        worst = max(worst, float((want - have).abs().max()) / scale) if want.shape == have.shape else float("inf")
    if not worst <= TOLERANCE:
        raise ModelError(
            f"the pruned network's output differs from the masked network's by {worst:.1e} of its largest value",
            remedy="its forward uses the number of channels in an unsupported way; please report the network",
        )
    return worst


def removed_positions(
    coupling: Coupling, kept: Mapping[str, Sequence[int]]
) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    """Positions that go, on the input side and on the output side, by layer."""
    known = {group.name: group for group in coupling}
    inputs: dict[str, set[int]] = defaultdict(set)
    outputs: dict[str, set[int]] = defaultdict(set)
    for name, units in kept.items():
        if name not in known:
            raise ModelError(f"the plan names a group '{name}', which the network does not have")
        group = known[name]
        gone = set(range(group.units)) - set(units)
        if not units or not set(units) <= set(range(group.units)):
            raise ModelError(f"the plan keeps units {sorted(units)[:4]}... of '{name}', which has {group.units}")
        if gone:
            for sides, slots in ((inputs, group.readers), (outputs, (*group.writers, *group.norms))):
                for slot in slots:
                    sides[slot.layer].update(position for unit in gone for position in slot.channels[unit])
    return inputs, outputs


def _branches(removed: Collection[Segment]) -> dict[str, nn.Module]:
    """What takes the place of each layer of the removed segments."""
    stand_ins: dict[str, nn.Module] = {}
    for segment in removed:
        if not segment.removable:
            raise ModelError(
                f"the plan removes '{segment.name}', which is not a residual block with an identity shortcut",
                remedy="was the plan made for another network?",
            )
        first, *others = segment.layers
        # The first, not the last: an in-place ReLU between them would otherwise work on the block's own source.
        stand_ins |= {first: Removed(), **{layer: nn.Identity() for layer in others}}
    return stand_ins


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
