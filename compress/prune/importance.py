"""Scores a unit: how much is lost when it goes.

Scores add up within a group, and those of different groups can be compared: allocation weighs them against one another.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.errors import ModelError
from compress.prune.coupling import Coupling
from compress.prune.gates import gated

Scores = dict[str, npt.NDArray[np.float64]]
"""By group name: (units,) scores, none negative."""


def taylor(net: nn.Module, coupling: Coupling, batches: Iterable[tuple[Tensor, Tensor]]) -> Scores:
    """First-order Taylor importance (Molchanov et al. 2019, arXiv:1906.10771, equation 8, with gates).

    I_u = E_n[(dL_n / dz_u)^2], where z_u = 1 multiplies unit u wherever it is read and L_n is the cross-entropy of
    image n. In a ResNet, whose readers see sums and ReLUs of what the writers wrote, this is the paper's
    (sum over writers of gamma dL/dgamma + beta dL/dbeta)^2: contributions add up *before* they are squared.

    Args:
        net: a classifier (N, C, H, W) -> (N, classes); scored in eval mode, and left alone.
        batches: training images and their class indices.

    Raises:
        ModelError: the output is not a row of logits an image, or the gradients are not finite.
    """
    net = copy.deepcopy(net).eval().requires_grad_(False)
    sums: dict[str, Tensor] = {group.name: torch.zeros(group.units, dtype=torch.float64) for group in coupling}
    images = 0
    for x, labels in batches:
        gates = {group.name: torch.ones(len(x), group.units, device=x.device, requires_grad=True) for group in coupling}
        with torch.enable_grad(), gated(net, coupling, gates):
            logits = net(x)
            if not isinstance(logits, Tensor) or logits.dim() != 2:
                raise ModelError(
                    "Taylor importance needs a classifier, whose output is one row of logits an image",
                    remedy="use prune.importance=norm",
                )
            loss = F.cross_entropy(logits, labels, reduction="sum")
            slopes = torch.autograd.grad(loss, list(gates.values()), allow_unused=True)
        for name, slope in zip(gates, slopes, strict=True):
            if slope is not None:  # a group that no reader sees costs nothing to cut
                sums[name] += slope.double().square().sum(0).cpu()
        images += len(x)
    if images == 0:
        raise ModelError("Taylor importance needs at least one image")
    scores = {name: (total / images).numpy() for name, total in sums.items()}
    for name, score in scores.items():
        if not np.isfinite(score).all():
            raise ModelError(f"the gradients at '{name}' are not finite", remedy="check the weights for NaN")
    return scores


def norm(net: nn.Module, coupling: Coupling) -> Scores:
    """L2 norm of all the weights that would go with a unit: its rows in the writers and its columns in the readers
    (Fang et al. 2023, arXiv:2301.12900, section 3.3), as a share of its group (see ``_by_share``), once for each layer
    that loses that share of its input.

    Raises:
        ModelError: weights that are not finite.
    """
    scores: Scores = {}
    for group in coupling:
        squares = torch.zeros(group.units, dtype=torch.float64)
        for slots, axis in ((group.writers, 0), (group.readers, 1)):
            for slot in slots:
                module = net.get_submodule(slot.layer)
                if not isinstance(module, nn.Conv2d | nn.Linear):
                    continue  # an option A shortcut has no weights
                if axis == 1 and isinstance(module, nn.Conv2d) and module.groups > 1:
                    continue  # its weights are counted as rows already
                weight = module.weight.detach().double().transpose(0, axis).flatten(1)
                squares += weight.square().sum(1).cpu()[torch.tensor(slot.channels)].sum(1)
        lengths = squares.sqrt().numpy()
        if not np.isfinite(lengths).all():
            raise ModelError(f"the weights of '{group.name}' are not finite")
        scores[group.name] = len(group.readers) * _by_share(lengths)
    return scores


def random(coupling: Coupling, seed: int) -> Scores:
    """A random order in every group: the baseline that any other score has to beat."""
    generator = np.random.default_rng(seed)
    return {group.name: len(group.readers) * _by_share(generator.random(group.units)) for group in coupling}


def _by_share(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scores in the order of ``values`` that compare across groups, whatever the scale of each.

    When units go in rising order, each scores how far the logarithm of what remains of the sum falls. So a group gets
    dearer the more it has lost, and neither a group of small values nor one of equal values is emptied first. The last
    unit, which never goes, scores as if its equal were left.

    >>> _by_share(np.array([1.0, 2.0, 1.0])).round(2).tolist()
    [0.29, 0.69, 0.41]
    """
    order = np.argsort(values, kind="stable")
    rising = values[order]
    remaining = np.append(np.cumsum(rising[::-1])[::-1], rising[-1])[1:]
    scores = np.zeros_like(values)
    scores[order] = np.log1p(np.divide(rising, remaining, out=np.zeros_like(rising), where=remaining > 0))
    return scores
