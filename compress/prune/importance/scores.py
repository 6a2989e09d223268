"""Scores of units: the loss that removing a unit causes.

Scores add up within a group, and those of different groups can be compared: allocation weighs them against one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from compress.graph.groups import Coupling

Scores = dict[str, npt.NDArray[np.float64]]
"""By group name: (units,) scores, none negative."""


@dataclass(frozen=True)
class Scored:
    """The data that a criterion may use.

    Attributes:
        net: in eval mode; a criterion leaves it alone.
        coupling: its groups of channels.
        classifier: its output is one row of logits an image; else it is a backbone.
        seed: of the run.
        labelled: opens the training images, in batches (N, C, H, W) with their classes (N,); raises DataError where
            there are none that fit the network.
    """

    net: nn.Module
    coupling: Coupling
    classifier: bool
    seed: int
    labelled: Callable[[], Iterable[tuple[Tensor, Tensor]]]


Criterion = Callable[[Scored], Scores | None]
"""Scores the units of each group; None: repair decides by itself which units it can make up for (``obs``)."""


def by_share(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scores in the order of ``values`` that compare across groups, whatever the scale of each.

    When units go in rising order, each scores how far the logarithm of what remains of the sum falls. So a group gets
    dearer the more it has lost, and neither a group of small values nor one of equal values is emptied first. The last
    unit, which never goes, scores as if its equal were left.

    >>> by_share(np.array([1.0, 2.0, 1.0])).round(2).tolist()
    [0.29, 0.69, 0.41]
    """
    order = np.argsort(values, kind="stable")
    rising = values[order]
    remaining = np.append(np.cumsum(rising[::-1])[::-1], rising[-1])[1:]
    scores = np.zeros_like(values)
    scores[order] = np.log1p(np.divide(rising, remaining, out=np.zeros_like(rising), where=remaining > 0))
    return scores
