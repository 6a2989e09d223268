"""Train a pruned or quantized network, which has the network before as its teacher: with labels, or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import fx, nn

from calibration.datasets import Data
from calibration.sampler import calibration_sample
from calibration.split import Split
from compress.config import TaughtConfig
from compress.errors import DataError
from compress.graph.head import features_of
from compress.models.model import Model
from compress.progress import SILENT, Progress
from compress.train.history import History
from compress.train.loop import fit
from compress.train.mimic import Teacher, among, frozen, survivors, tapped


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

    Raises:
        DataError: there are no images to train on; see also ``fit``.
    """
    shape = model.preprocess.shape
    labels = settings.labels and bool(model.classes) and (data.train is None or data.train.labelled)
    if not labels and teacher is not None:
        settings = settings.without_labels()
    if epochs is None:
        epochs = settings.epochs or 0
    else:
        settings = settings.model_copy(update={"warmup": min(settings.warmup, epochs / 2)})
    if epochs == 0:
        return History((), 0)
    train, held_out = _labelled(data) if labels else _unlabelled(data, seed)
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
        assert isinstance(net, fx.GraphModule)
        mine = among(model.net, {node.name for node in net.graph.nodes}, at)
        return fitted(tapped(net, mine), teacher=Teacher(tapped(teacher, theirs), channels).eval())


def _labelled(data: Data) -> _Images:
    if data.train is None:
        raise DataError(
            "training needs images, and data.train is not set",
            remedy="set data.train; or labels=false, which makes do with the calibration images; or epochs=0",
        )
    return _Images(data.train, data.holdout)


def _unlabelled(data: Data, seed: int) -> _Images:
    """The training images; else the calibration images, none of which accuracy is measured on.

    Of the latter none are held out: repair and calibration have seen them all.
    """
    if data.train is not None:
        return _Images(data.train, data.holdout)
    if data.calibration is None:
        raise DataError("there are no images to learn from", remedy="set data.train or data.calibration")
    chosen = calibration_sample(data.calibration, len(data.calibration), seed=seed, exclude=data.eval)
    return _Images(data.calibration.subset(sorted(chosen), "train"), None)
