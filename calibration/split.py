"""A labelled image set whose images are decoded when they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibration.errors import DataError

Indices = NDArray[np.int64]
MOST_CLASSES = 100_000  # the whole of ImageNet has 21,841


class Source(Protocol):
    """Where the images of a set are stored."""

    def image(self, i: int) -> Image.Image:
        """Decode image ``i``, as RGB, or as RGBA if it has alpha."""
        ...

    def digest(self, i: int) -> str:
        """SHA-256 of image ``i``: of its file, or of its pixels if there is no file."""
        ...

    def where(self, i: int) -> str:
        """How a message names image ``i``: by its path if it has one."""
        ...


@dataclass(frozen=True, eq=False)
class Split:
    """Some images of a source, each with a label, or all without.

    Attributes:
        name: shown in messages: ``train``, ``holdout``, ``eval``, ``calibration``.
        classes: the name of each label; empty if the images have no labels.
        labels: (N,) int64; zeros if there are none.
        source: where the images are stored.
        indices: (N,) int64; item i of the split is image ``indices[i]`` of the source.
        indexed: the labels are class numbers of a list that may be longer than ``classes``; ``labels.csv`` gives such
            numbers.
    """

    name: str
    classes: tuple[str, ...]
    labels: Indices
    source: Source
    indices: Indices
    indexed: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return bool(self.classes)

    def image(self, i: int) -> Image.Image:
        """Image ``i``, RGB, or RGBA if it has alpha.

        Raises:
            DataError: the file is damaged, truncated, or missing.
        """
        return self.source.image(int(self.indices[i]))

    def digest(self, i: int) -> str:
        """SHA-256 of the file (or pixels) of image ``i``, in hexadecimal."""
        return self.source.digest(int(self.indices[i]))

    def where(self, i: int) -> str:
        """The path of image ``i``, or another description that identifies it."""
        return self.source.where(int(self.indices[i]))

    def subset(self, indices: Sequence[int] | Indices, name: str) -> Split:
        """The items at ``indices``, in that order, as a split with another name."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(self, name=name, labels=self.labels[chosen], indices=self.indices[chosen])


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Images in memory: (N, H, W) grey or (N, H, W, 3) RGB, uint8."""

    name: str
    pixels: NDArray[np.uint8]

    def image(self, i: int) -> Image.Image:
        return Image.fromarray(self.pixels[i]).convert("RGB")

    def digest(self, i: int) -> str:
        return hashlib.sha256(self.pixels[i].tobytes()).hexdigest()

    def where(self, i: int) -> str:
        return f"{self.name}[{i}]"

    def split(self, name: str, classes: Sequence[str], labels: Sequence[int] | Indices) -> Split:
        """All the images as one split."""
        return Split(name, tuple(classes), np.asarray(labels, dtype=np.int64), self, np.arange(len(self.pixels)))


def numbered(split: Split, outputs: Mapping[str, int]) -> Split:
    """The same images with class numbers in place of the labels.

    Args:
        outputs: for the name of each class, the number of the network's output that stands for it.

    Raises:
        DataError: a class has no number, or two classes have the same one.
    """
    if not split.labelled:
        return split
    missing = [name for name in split.classes if name not in outputs]
    if split.indexed:  # only the numbers that occur are classes
        missing = [str(label) for label in np.unique(split.labels) if str(label) not in outputs]
    if missing:
        raise DataError(
            f"data.classes has no number for {len(missing)} of the {split.name} classes ({', '.join(missing[:3])})",
            remedy="give the number of the network's output for every class",
        )
    count = max(outputs.values()) + 1
    if len(set(outputs.values())) < len(outputs) or count > MOST_CLASSES:
        raise DataError(
            "data.classes gives two classes the same number"
            if count <= MOST_CLASSES
            else f"data.classes has the number {count - 1}, which is no class number",
            remedy=f"give every class a number of its own from 0, below {MOST_CLASSES}",
        )
    new = np.array([outputs.get(name, 0) for name in split.classes], dtype=np.int64)[split.labels]
    if len(outputs) < count:  # the network has outputs for classes that the data lack
        return replace(split, classes=tuple(map(str, range(count))), labels=new, indexed=True)
    names = {number: name for name, number in outputs.items()}
    return replace(split, classes=tuple(names[number] for number in range(count)), labels=new, indexed=False)


def check_classes(split: Split, outputs: int) -> None:
    """Check that the labels of ``split`` fit a network with ``outputs`` logits.

    Raises:
        DataError: there are no labels, or the counts differ (or, for labels that index a longer list, a label is out
            of range).
    """
    if not split.labelled:
        raise DataError(
            f"the {split.name} images have no labels",
            remedy="put them into one folder per class, or list them in data.labels",
        )
    count = len(split.classes)
    if count == outputs or (split.indexed and count < outputs):
        return
    raise DataError(
        f"the network has {outputs} outputs, the {split.name} images have {count} classes",
        remedy="set model.new_head=true to train a fresh classifier for these classes, or point data at the images "
        "that the network was trained for",
    )


def stratified(labels: Indices, share: float, seed: int) -> tuple[Indices, Indices]:
    """Split positions into (the rest, a seeded ``share`` of each class), each in ascending order.

    A class with two or more images gives at least one image to each part.

    >>> rest, share = stratified(np.array([0, 0, 0, 0, 1, 1]), 0.25, seed=0)
    >>> len(rest), len(share)
    (4, 2)
    """
    rng = np.random.default_rng(seed)
    taken: list[Indices] = [np.empty(0, dtype=np.int64)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        size = min(max(round(share * len(members)), 1), len(members) - 1) if share > 0 else 0
        taken.append(members[:size])
    share_of = np.sort(np.concatenate(taken))
    return np.setdiff1d(np.arange(len(labels)), share_of), share_of
