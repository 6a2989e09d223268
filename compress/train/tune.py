"""Train a pruned or quantized network, which has the network before as its teacher: with labels, or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn

from calibration.datasets import Data
from calibration.sampler import calibration_sample
from calibration.split import Split, stratified
from compress.config import TaughtConfig
from compress.errors import DataError
from compress.graph.head import features_of
from compress.models.model import Model
from compress.progress import SILENT, Progress
from compress.train.history import History
from compress.train.loop import fit
from compress.train.mimic import Teacher, frozen, survivors, tapped

_FEWEST = 2  # images without labels: one to learn from, one to hold out


class _Images(NamedTuple):
    train: Split
    holdout: Split | None


def tune(
    net: nn.Module,
    model: Model,
    teacher: nn.Module | None,
    data: Data,
    settings: TaughtConfig,
    *,
    epochs: int | None = None,
    kept: Mapping[str, Sequence[int]] | None = None,
    holdout: float = 0.1,
    seed: int = 0,
    workers: int = 0,
    scratch: Path | None = None,
    progress: Progress = SILENT,
) -> History:
    """Train ``net`` in place; see ``fit``.

    Without labels (``settings.labels`` is false, or the images have none, or the network is a backbone) it learns the
    teacher's features and logits, or a backbone's outputs, with the classifier as it is.

    Args:
        net: ``model.net``, or the same network fake-quantized.
        teacher: raised; needed where ``settings.distill`` is above 0.
        epochs: in place of ``settings.epochs``; warm-up then takes half of them at most.
        kept: by group of the teacher, the units that ``net`` still has; None: all.
        holdout: share of the images without labels that is held out, if no labelled ones are.

    Raises:
        DataError: there are no images to train on; see also ``fit``.
    """
    shape = model.preprocess.shape
    labels = settings.labels and bool(model.classes) and (data.train is None or data.train.labelled)
    if not labels:
        settings = settings.without_labels()
    if epochs is None:
        epochs = settings.epochs or 0
    else:
        settings = settings.model_copy(update={"warmup": min(settings.warmup, epochs / 2)})
    if epochs == 0:
        return History((), 0)
    train, held_out = _labelled(data) if labels else _unlabelled(data, holdout, seed)
    fitted = partial(
        fit,
        train=train,
        holdout=held_out,
        preprocess=model.preprocess,
        config=settings,
        epochs=epochs,
        labels=labels,
        seed=seed,
        workers=workers,
        scratch=scratch,
        progress=progress,
    )
    at = None if labels or teacher is None else features_of(model.net, shape)
    if at is None or teacher is None:
        return fitted(net, teacher=teacher)
    progress.note("training without labels: the network learns the features and logits of the one before")
    theirs = features_of(teacher, shape)
    assert theirs is not None  # both are the same network
    channels = None if kept is None else survivors(teacher, shape, theirs, kept)
    with frozen(net.get_submodule(at.head)):
        return fitted(tapped(net, at), teacher=Teacher(tapped(teacher, theirs), channels).eval())


def _labelled(data: Data) -> _Images:
    if data.train is None:
        raise DataError(
            "training needs images, and data.train is not set",
            remedy="set data.train; or labels=false, which makes do with the calibration images; or epochs=0",
        )
    return _Images(data.train, data.holdout)


def _unlabelled(data: Data, holdout: float, seed: int) -> _Images:
    """The training images, else the calibration images, none of which accuracy is measured on."""
    images = data.train
    if images is None:
        if data.calibration is None:
            raise DataError("there are no images to learn from", remedy="set data.train or data.calibration")
        chosen = calibration_sample(data.calibration, len(data.calibration), seed=seed, exclude=data.eval)
        images = data.calibration.subset(sorted(chosen), "train")
    if data.holdout is not None or holdout == 0 or len(images) < _FEWEST:
        return _Images(images, data.holdout)
    rest, back = stratified(np.zeros_like(images.labels), holdout, seed)
    return _Images(images.subset(rest, "train"), images.subset(back, "holdout"))
