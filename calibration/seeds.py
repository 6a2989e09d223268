"""Independent seeds from one."""

from __future__ import annotations

import numpy as np


def derive(seed: int, *path: int) -> int:
    """A 32-bit seed for the place ``path`` (epoch, image, ...) of a job seeded with ``seed``.

    What is drawn at one place then does not depend on what was drawn before: a resumed job equals an uninterrupted one.

    >>> derive(0, 1) == derive(0, 1), derive(0, 1) == derive(0, 2), derive(0, 1) == derive(1, 0)
    (True, False, False)
    """
    return int(np.random.SeedSequence([seed, *path]).generate_state(1)[0])
