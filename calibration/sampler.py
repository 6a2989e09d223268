"""Choose the calibration images: seeded, class-balanced, and never an image that accuracy is measured on."""

from __future__ import annotations

import numpy as np

from calibration.errors import DataError
from calibration.split import Split


def calibration_sample(split: Split, count: int, *, seed: int, exclude: Split | None = None) -> tuple[int, ...]:
    """Positions in ``split`` of ``count`` images, drawn from the classes in turn.

    Class counts differ by at most one as long as every class has images left. A larger sample with the same seed begins
    with the smaller one.

    Args:
        exclude: the evaluation images.

    Raises:
        DataError: there are fewer images than ``count``, or an image also occurs in ``exclude``, by its content.

    >>> from calibration.datasets import load_data
    >>> data = load_data("digits")
    >>> chosen = calibration_sample(data.train, 20, seed=0, exclude=data.eval)
    >>> np.bincount(data.train.labels[list(chosen)]).tolist()
    [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    """
    if count > len(split):
        raise DataError(
            f"{count} calibration images asked for, but '{split.name}' has {len(split)}",
            remedy=f"set quantize.calibration_images={len(split)} or fewer, or give more images",
        )
    rng = np.random.default_rng(seed)
    turn = np.empty(len(split), dtype=np.int64)  # an image's rank within its own class
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        turn[rng.permutation(members)] = np.arange(len(members))
    order = np.lexsort((rng.permutation(len(split)), turn))
    chosen = tuple(int(i) for i in order[:count])
    if exclude is not None:
        _check_apart(split, chosen, exclude)
    return chosen


def _check_apart(split: Split, chosen: tuple[int, ...], exclude: Split) -> None:
    sample = {split.digest(i): i for i in chosen}
    for j in range(len(exclude)):
        if (i := sample.get(exclude.digest(j))) is not None:
            raise DataError(
                f"calibration image {split.where(i)} is also evaluation image {exclude.where(j)}",
                remedy="remove it from one of the two: calibrating on evaluation images overstates the accuracy",
            )
