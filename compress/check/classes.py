"""Which output of a network may stand for which class of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

_LEAST = 4  # images of a class, to find its output in one half and to check it in the other
_OWN = 0.1  # votes for the configured output, which decide a tie

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Order:
    """An assignment of outputs to classes.

    Attributes:
        name: how a message calls it; empty for the configured one.
        outputs: (classes,) the number of the output for each class; -1 where there is none.
    """

    name: str
    outputs: Indices


def known_orders(names: Sequence[str], labels: Indices, outputs: int) -> list[Order]:
    """Assignments that are usual mistakes.

    Args:
        names: of the classes.
        labels: (N,) of the images.
        outputs: how many the network has.
    """
    count = len(names)
    own = np.arange(count)
    found = []
    if all(name.isdecimal() for name in names):
        by_number = np.argsort(np.argsort([int(name) for name in names], kind="stable"))
        by_text = np.argsort(np.argsort(np.array(names), kind="stable"))
        found += [Order("classes in numerical order (1, 2, 10)", by_number)]
        found += [Order("classes in alphabetical order (1, 10, 2)", by_text)]
    ignoring_case = np.argsort(np.argsort(np.array([name.lower() for name in names]), kind="stable"))
    found.append(Order("classes in alphabetical order without regard to capitals", ignoring_case))
    if outputs > count:
        found.append(Order("output 0 is the background", own + 1))
    if len(labels) and labels.min() >= 1:
        found.append(Order("labels that count from 1", own - 1))
    return [order for order in found if (order.outputs != own).any()]


def fitted(predicted: Indices, labels: Indices, classes: int, outputs: int) -> Order:
    """The assignment that makes the most answers right: each class gets the output that its images get most often.

    >>> fitted(np.array([2, 2, 0, 0]), np.array([0, 0, 1, 1]), classes=2, outputs=3).outputs.tolist()
    [2, 0]
    """
    votes = np.zeros((classes, outputs))
    np.add.at(votes, (labels, predicted), 1)
    own = np.arange(min(classes, outputs))
    votes[own, own] += _OWN
    rows, columns = linear_sum_assignment(-votes)
    found = np.full(classes, -1, np.int64)
    found[rows] = columns
    return Order("classes in another order", found)


def fitted_right(predicted: Indices, labels: Indices, classes: int, outputs: int) -> NDArray[np.bool_] | None:
    """(N,) whether each answer is right by the assignment that was fitted to the other half of the images.

    None if there are too few images of each class to tell.
    """
    present, counts = np.unique(labels, return_counts=True)
    if not len(present) or np.median(counts) < _LEAST:
        return None
    half = np.zeros(len(labels), dtype=bool)
    for label in present:
        half[np.flatnonzero(labels == label)[::2]] = True
    right = np.zeros(len(labels), dtype=bool)
    for fit in (half, ~half):
        order = fitted(predicted[fit], labels[fit], classes, outputs)
        right[~fit] = order.outputs[labels[~fit]] == predicted[~fit]
    return right
