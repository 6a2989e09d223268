"""The image sets of a run: images to train on, to hold out, to evaluate on and to calibrate on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from calibration.cifar10 import cifar10
from calibration.digits import digits
from calibration.errors import DataError
from calibration.folder import FileSource, files_below, has_class_folders, read_folder, read_listed
from calibration.split import Split, check_classes, numbered, stratified

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

    @property
    def splits(self) -> tuple[Split, ...]:
        """The sets that there are, each once."""
        found = (self.train, self.holdout, self.eval, self.calibration)
        return tuple(split for split in dict.fromkeys(found) if split is not None)

    def without(self, files: Container[Path]) -> Data:
        """The sets without the images in these files.

        Raises:
            DataError: a set has no images left.
        """
        kept: dict[Split | None, Split | None] = {
            None: None,
            **{split: _without(split, files) for split in self.splits},
        }
        return Data(*(kept[split] for split in (self.train, self.holdout, self.eval, self.calibration)))

    @property
    def labelled(self) -> Split | None:
        """Images with the labels that the network has outputs for: the training images if they have labels."""
        return next((split for split in (self.train, self.eval) if split is not None and split.labelled), None)


def _without(split: Split, files: Container[Path]) -> Split:
    paths = split.source.paths if isinstance(split.source, FileSource) else None
    if paths is None:
        return split
    kept = [i for i, image in enumerate(split.indices.tolist()) if paths[image] not in files]
    if not kept:
        raise DataError(f"none of the {len(split)} {split.name} images can be read")
    return split if len(kept) == len(split) else split.subset(kept, split.name)


def listing(folder: Path) -> str:
    """SHA-256 over the names and sizes of the files of a folder; changes when images are added, removed or replaced."""
    digest = hashlib.sha256()
    for path in files_below(folder) if folder.is_dir() else ():  # hidden files are no images
        size = path.stat().st_size if path.exists() else -1  # a broken link
        digest.update(os.fsencode(path.relative_to(folder)) + f"\0{size}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Asked:
    train: Path | None
    eval: Path | None
    labels: Path | None
    download: bool


Pair = tuple[Split | None, Split | None]


def load_data(
    kind: str,
    *,
    train: Path | None = None,
    eval: Path | None = None,
    calibration: Path | None = None,
    labels: Path | None = None,
    classes: Mapping[str, int] | None = None,
    download: bool = False,
    holdout: float = 0.1,
    seed: int = 0,
) -> Data:
    """Open the images of a run; no image is decoded yet.

    Args:
        kind: ``digits`` (built in, needs no folder), ``imagefolder`` or ``cifar10``.
        train: folder of training images, or the CIFAR-10 root. Not needed if nothing is trained. Images without class
            folders are images without labels.
        eval: folder of evaluation images; default for CIFAR-10: its own test set.
        calibration: folder of calibration images; their classes are only used to balance the sample.
        labels: CSV file that lists the images of ``train`` and ``eval`` with their classes; see ``read_listed``.
        classes: which output of the network each class is; default: the classes in alphabetical order.
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
    asked = _Asked(train, eval, labels, download)
    training, evaluation = (None, None) if only_calibrates else KINDS[kind](asked)
    if classes:
        training, evaluation = (None if one is None else numbered(one, classes) for one in (training, evaluation))
    if training is not None and evaluation is not None and training.labelled:
        _check_same(training, evaluation)
    kept = None
    if training is not None and holdout > 0 and (training.labelled or len(training) > 1):
        rest, back = stratified(training.labels, holdout, seed)
        training, kept = training.subset(rest, "train"), training.subset(back, "holdout")
        if not len(training) or not len(kept):
            raise DataError(f"data.holdout={holdout} leaves no images to train on, or none to hold out")
    other = training if calibration is None else read_folder(calibration, "calibration", flat=True)
    return Data(training, kept, evaluation, other)


def _digits(asked: _Asked) -> Pair:
    if asked.train is not None or asked.eval is not None:
        raise DataError(
            "data.train and data.eval are given, but data.kind is 'digits', which is built in and reads no folder",
            remedy="set data.kind='imagefolder'",
        )
    return digits()


def _imagefolder(asked: _Asked) -> Pair:
    roots = {name: root for name, root in (("train", asked.train), ("eval", asked.eval)) if root is not None}
    if not roots:
        raise DataError("data.kind is 'imagefolder', but no folder is given", remedy="set data.train or data.eval")
    if asked.labels is not None:
        splits = read_listed(roots, asked.labels)
    else:
        splits = {name: read_folder(root, name, flat=name == "train") for name, root in roots.items()}
    return splits.get("train"), splits.get("eval")


def _cifar10(asked: _Asked) -> Pair:
    root = asked.train or asked.eval
    if root is None:
        raise DataError(
            "data.kind is 'cifar10', but its folder is not given", remedy="set data.train to the CIFAR-10 root"
        )
    if has_class_folders(root):
        return _imagefolder(asked)
    return (
        None if asked.train is None else cifar10(asked.train, train=True, download=asked.download),
        cifar10(asked.eval or root, train=False, download=asked.download),
    )


KINDS: dict[str, Callable[[_Asked], Pair]] = {"digits": _digits, "imagefolder": _imagefolder, "cifar10": _cifar10}


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
