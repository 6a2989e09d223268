"""The weight norm criterion: units with small weights go first."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from compress.errors import ModelError
from compress.graph.groups import Coupling
from compress.prune.importance.scores import Scored, Scores, by_share


def weight_norm(net: nn.Module, coupling: Coupling) -> Scores:
    """L2 norm of all the weights that would go with a unit: its rows in the writers and its columns in the readers
    (Fang et al. 2023, arXiv:2301.12900, section 3.3), as a share of its group (see ``by_share``), once for each layer
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
        scores[group.name] = len(group.readers) * by_share(lengths)
    return scores


def criterion(scored: Scored) -> Scores:
    """``weight_norm`` of the network."""
    return weight_norm(scored.net, scored.coupling)
