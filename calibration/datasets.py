"""The image sets of a run: images to train on, to hold out, to evaluate on and to calibrate on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from calibration.cifar10 import cifar10
from calibration.digits import digits
from calibration.errors import DataError
from calibration.folder import files_below, has_class_folders, read_folder
from calibration.split import Split, check_classes, stratified

__all__ = ["KINDS", "Data", "Split", "check_classes", "listing", "load_data"]


@dataclass(frozen=True)
class Data:
    """The image sets of one run; a set is None if the run has no such images.

    Attributes:
        train: the images that weights are fitted to.
        holdout: training images held out to choose the best checkpoint; never part of the evaluation split.
        eval: the images that the reported accuracy is measured on.
        calibration: the images that quantization reads; the training images unless others were given.
    """

    train: Split | None
    holdout: Split | None
    eval: Split | None
    calibration: Split | None


def listing(folder: Path) -> str:
    """SHA-256 over the names and sizes of the files of a folder; changes when images are added, removed or replaced."""
    digest = hashlib.sha256()
    for path in files_below(folder) if folder.is_dir() else ():
        size = path.stat().st_size if path.exists() else -1  # a broken link
        digest.update(os.fsencode(path.relative_to(folder)) + f"\0{size}\n".encode())
    return digest.hexdigest()


Reader = Callable[[Path | None, Path | None, bool], tuple[Split | None, Split | None]]


def load_data(
    kind: str,
    *,
    train: Path | None = None,
    eval: Path | None = None,
    calibration: Path | None = None,
    download: bool = False,
    holdout: float = 0.1,
    seed: int = 0,
) -> Data:
    """Open the images of a run; no image is decoded yet.

    Args:
        kind: ``digits`` (built in, needs no folder), ``imagefolder`` or ``cifar10``.
        train: folder of training images, or the CIFAR-10 root. Not needed if nothing is trained.
        eval: folder of evaluation images; default for CIFAR-10: its own test set.
        calibration: folder of calibration images; their classes are only used to balance the sample.
        download: let torchvision download CIFAR-10 into ``train``.
        holdout: share of each class of the training images that is held out.
        seed: chooses the images that are held out.

    Raises:
        DataError: a folder is missing or malformed, or the classes of train and eval differ.

    >>> data = load_data("digits")
    >>> len(data.train), len(data.holdout), len(data.eval), data.train.image(0).size
    (1211, 136, 450, (64, 64))
    """
    if kind not in KINDS:
        raise DataError(f"unknown kind of data '{kind}'", remedy=f"known: {', '.join(KINDS)}")
    only_calibrates = train is None and eval is None and calibration is not None
    training, evaluation = (None, None) if only_calibrates else KINDS[kind](train, eval, download)
    if training is not None and evaluation is not None:
        _check_same(training, evaluation)
    kept = None
    if training is not None and holdout > 0:
        rest, back = stratified(training.labels, holdout, seed)
        training, kept = training.subset(rest, "train"), training.subset(back, "holdout")
        if not len(training) or not len(kept):
            raise DataError(f"data.holdout={holdout} leaves no images to train on, or none to hold out")
    other = training if calibration is None else read_folder(calibration, "calibration", flat=True)
    return Data(training, kept, evaluation, other)


def _digits(train: Path | None, eval: Path | None, download: bool) -> tuple[Split | None, Split | None]:
    if train is not None or eval is not None:
        raise DataError(
            "data.train and data.eval are given, but data.kind is 'digits', which is built in and reads no folder",
            remedy="set data.kind='imagefolder'",
        )
    return digits()


def _imagefolder(train: Path | None, eval: Path | None, download: bool) -> tuple[Split | None, Split | None]:
    if train is None and eval is None:
        raise DataError("data.kind is 'imagefolder', but no folder is given", remedy="set data.train or data.eval")
    return (
        None if train is None else read_folder(train, "train"),
        None if eval is None else read_folder(eval, "eval"),
    )


def _cifar10(train: Path | None, eval: Path | None, download: bool) -> tuple[Split | None, Split | None]:
    root = train or eval
    if root is None:
        raise DataError(
            "data.kind is 'cifar10', but its folder is not given", remedy="set data.train to the CIFAR-10 root"
        )
    if has_class_folders(root):
        return _imagefolder(train, eval, download)
    return (
        None if train is None else cifar10(train, train=True, download=download),
        cifar10(eval or root, train=False, download=download),
    )


KINDS: dict[str, Reader] = {"digits": _digits, "imagefolder": _imagefolder, "cifar10": _cifar10}


def _check_same(train: Split, eval: Split) -> None:
    if train.indexed or eval.indexed:
        return check_classes(replace(eval, indexed=True), len(train.classes))
    if train.classes != eval.classes:
        only = [
            f"only in {here.name}: {', '.join(names[:3])}"
            for here, there in ((train, eval), (eval, train))
            if (names := [name for name in here.classes if name not in there.classes])
        ]
        raise DataError(
            f"train has {len(train.classes)} classes, eval has {len(eval.classes)}; {'; '.join(only)}",
            remedy="give both folders the same class subfolders",
        )
    return None
