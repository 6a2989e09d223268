"""The result file of ``benchmarks.accuracy``: an engine's accuracy, alone and compared with another engine's."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from benchmarks.results.base import Artifact, Bounds, Common, Record


class Accuracy(Record):
    """Number and share of the images that were classified correctly."""

    correct: int = Field(description="images that were classified correctly")
    value: Bounds = Field(description="share of the images, Wilson's interval")


class ClassAccuracy(Record):
    """The images of one class."""

    index: int = Field(description="its index among the network's outputs")
    name: str = Field(description="the class name; the index if no name is known")
    images: int = Field(description="images of this class")
    correct: int = Field(description="images of this class that were classified correctly")


class PairedAccuracy(Record):
    """This engine compared with another on the same images."""

    against: Artifact
    top1: Accuracy = Field(description="of the other engine")
    per_class: list[ClassAccuracy] = Field(default_factory=list, description="of the other engine")
    only_this: int = Field(description="images that only this engine classified correctly")
    only_other: int = Field(description="images that only the other engine classified correctly")
    difference: Bounds = Field(description="top-1 of this engine minus the other's, Newcombe's paired interval")
    ratio: Bounds | None = Field(
        None,
        description="top-1 of this engine over the other's, Nam and Blackwelder's interval; null if that is zero",
    )
    mcnemar_p: float = Field(description="two-sided p of McNemar's exact test for a difference of the two top-1")
    agreement: float = Field(description="share of the images for which both predict the same class")


class AccuracyResult(Common):
    """The accuracy of one engine file."""

    kind: Literal["accuracy"] = "accuracy"
    images: int = Field(description="number of images")
    top1: Accuracy = Field(description="the class with the highest score is the true one")
    top5: Accuracy | None = Field(
        description="the true class is among the five with the highest scores; null for five classes or fewer"
    )
    per_class: list[ClassAccuracy] = Field(
        default_factory=list, description="one entry per class; classes without images are left out"
    )
    paired: PairedAccuracy | None = Field(description="null if no other engine was given")
