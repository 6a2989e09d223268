"""Derive independent seeds from one seed."""

from __future__ import annotations

import numpy as np


def derive(seed: int, *path: int) -> int:
    """A 32-bit seed for the step ``path`` (epoch, image, ...) of a job seeded with ``seed``.

    The random numbers of one step do not depend on earlier steps, so a resumed job equals an uninterrupted one.

    >>> derive(0, 1) == derive(0, 1), derive(0, 1) == derive(0, 2), derive(0, 1) == derive(1, 0)
    (True, False, False)
    """
    return int(np.random.SeedSequence([seed, *path]).generate_state(1)[0])
