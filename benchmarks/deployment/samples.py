"""The sample images of a deployed folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from benchmarks.deployment.images import image_files
from benchmarks.evaluation.images import evaluation_split
from calibration.decode import decode
from compress.config import Config
from compress.data import open_data
from compress.errors import DataError


@dataclass(frozen=True, eq=False)
class Sample:
    """A decoded image, RGB or RGBA.

    Attributes:
        label: the name of its class; None if it is not known.
    """

    image: Image.Image
    label: str | None = None


def given(words: Sequence[str]) -> list[Sample]:
    """The images that files, folders and patterns lead to.

    Raises:
        DataError: one cannot be read, or there are none.
    """
    found = []
    for file in image_files(words):
        if isinstance(file, DataError):
            raise file
        found.append(Sample(decode(file, alpha=True)))
    return found


def drawn(data: str | None, config: Config, count: int) -> list[Sample]:
    """Evaluation images, the same ones at each call; none if the configuration has none, as for a backbone.

    Args:
        data, config: see ``evaluation_split``.

    Raises:
        DataError: there are no images in ``data``, or one cannot be read.
    """
    if count == 0 or (data is None and open_data(config.data, config.run.seed).eval is None):
        return []
    split = evaluation_split(data, config)
    chosen = np.random.default_rng(0).permutation(len(split))[:count].tolist()
    return [Sample(split.image(i), split.classes[split.labels[i]] if split.classes else None) for i in chosen]
