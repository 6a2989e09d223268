"""The first-order Taylor criterion: how much the loss changes, to first order, when a unit goes."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.errors import ModelError
from compress.graph.groups import Coupling
from compress.prune.importance.masks import gated
from compress.prune.importance.scores import Scored, Scores


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


def criterion(scored: Scored) -> Scores:
    """``taylor`` on the training images.

    Raises:
        ModelError: the network is a backbone.
        DataError: there are no labelled images that fit its classes.
    """
    if not scored.classifier:
        raise ModelError(
            "Taylor importance needs a classifier: a backbone has no loss", remedy="set prune.importance=obs"
        )
    batches = scored.labelled()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_device = ((x.to(device), labels.to(device)) for x, labels in batches)
    return taylor(copy.deepcopy(scored.net).to(device), scored.coupling, on_device)
