"""The random criterion: the baseline that any other criterion has to beat."""

from __future__ import annotations

import numpy as np

from compress.graph.groups import Coupling
from compress.prune.importance.scores import Scored, Scores, by_share


def random_scores(coupling: Coupling, seed: int) -> Scores:
    """A random order in every group: the baseline that any other score has to beat."""
    generator = np.random.default_rng(seed)
    return {group.name: len(group.readers) * by_share(generator.random(group.units)) for group in coupling}


def criterion(scored: Scored) -> Scores:
    """``random_scores`` by the run's seed."""
    return random_scores(scored.coupling, scored.seed)
