"""The images that an engine is evaluated on, preprocessed as its file says."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.evaluation import DATA_HELP
from calibration.datasets import Data, Split, load_data
from calibration.loader import batches
from calibration.preprocess import Preprocess
from calibration.transforms import eval_transform
from compress.config import Config
from compress.data import open_data
from compress.engines.base import Array, Engine
from compress.errors import DataError, EngineError


def evaluation_split(data: str | None, config: Config | None = None) -> Split:
    """The evaluation images of ``--data``, or of a configuration's ``[data]`` if ``--data`` is not given.

    Args:
        data: ``digits``, ``cifar10:FOLDER``, or an image folder.

    Raises:
        DataError: there are none, or they cannot be read.
    """
    if data is not None:
        return _there(_load(data, training=False).eval)
    config = config or Config()
    known = config.run.dir if config.data.skip_broken else None  # otherwise the images are checked as they are read
    return _there(open_data(config.data, config.run.seed, run=known).eval)


def images_of_run(config: Config, *, classes: bool) -> Split | None:
    """The evaluation images of a run; None if there are none.

    Args:
        classes: the network has classes. One without needs no labels, so any images of the run will do.
    """
    found = open_data(config.data, config.run.seed, run=config.run.dir)
    if found.eval is None and not classes:
        return found.holdout or found.calibration
    return found.eval


def calibration_split(data: str) -> Split:
    """The training images of ``--data``, to draw a calibration sample from.

    Raises:
        DataError: there are none, or they cannot be read.
    """
    return _there(_load(data, training=True).calibration)


def _load(data: str, *, training: bool) -> Data:
    if data == "digits":
        return load_data("digits", holdout=0)
    kind, _, folder = data.partition(":")
    if kind != "cifar10":
        kind, folder = "imagefolder", data
    root = Path(folder) if folder else None
    return load_data(kind, train=root if training else None, eval=None if training else root, holdout=0)


def _there(split: Split | None) -> Split:
    if split is None:
        raise DataError("there are no such images", remedy=f"give --data: {DATA_HELP}")
    return split


def preprocess_of(engine: Engine, path: Path) -> Preprocess:
    """The preprocessing that the engine's file states.

    Raises:
        EngineError: the file states none, because it was not exported by this package.
    """
    if engine.metadata is None:
        raise EngineError(
            f"{path} does not say how its images are prepared",
            remedy="export it with `python -m compress export`; a foreign file can be timed, without --data",
        )
    return engine.metadata.preprocess


def image_pools(split: Split, preprocesses: Iterable[Preprocess]) -> tuple[Array, ...]:
    """``first_images`` for each input size among some networks' preprocessing."""
    by_shape: dict[tuple[int, ...], Preprocess] = {}
    for preprocess in preprocesses:
        by_shape.setdefault(preprocess.shape, preprocess)
    return tuple(first_images(split, preprocess) for preprocess in by_shape.values())


def first_images(split: Split, preprocess: Preprocess, count: int = 64) -> Array:
    """The first images of a seeded shuffle, preprocessed: (count, C, H, W) float32."""
    chosen = np.random.default_rng(0).permutation(len(split))[:count]
    loader = batches(split.subset(chosen, split.name), eval_transform(preprocess), count)
    return next(iter(loader))[0].numpy()
