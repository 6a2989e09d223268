"""Accuracies, alone and against another engine on the same images; ``benchmarks.accuracy`` writes them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from benchmarks.results.base import Artifact, Bounds, Common, Record


class Accuracy(Record):
    """How many images were classified right."""

    correct: int = Field(description="images")
    value: Bounds = Field(description="share of the images, Wilson's interval")


class ClassAccuracy(Record):
    """The images of one class."""

    index: int = Field(description="its place among the network's outputs")
    name: str = Field(description="the index again where no name is known")
    images: int = Field(description="that are of this class")
    correct: int = Field(description="images of it that were classified right")


class PairedAccuracy(Record):
    """This engine against another on the same images."""

    against: Artifact
    top1: Accuracy = Field(description="of the other engine")
    per_class: list[ClassAccuracy] = Field(default_factory=list, description="of the other engine")
    only_this: int = Field(description="images that only this engine got right")
    only_other: int = Field(description="images that only the other engine got right")
    difference: Bounds = Field(description="top-1 of this engine minus the other's, Newcombe's paired interval")
    ratio: Bounds | None = Field(
        None,
        description="top-1 of this engine over the other's, Nam and Blackwelder's interval; null where that is zero",
    )
    mcnemar_p: float = Field(description="two-sided p of McNemar's exact test: do the two differ in top-1?")
    agreement: float = Field(description="share of the images on which both give the same class")


class AccuracyResult(Common):
    """The accuracy of one engine file."""

    kind: Literal["accuracy"] = "accuracy"
    images: int = Field(description="that were classified")
    top1: Accuracy = Field(description="the likeliest class is the right one")
    top5: Accuracy | None = Field(description="null where there are five classes or fewer")
    per_class: list[ClassAccuracy] = Field(default_factory=list, description="classes without images are left out")
    paired: PairedAccuracy | None = Field(description="null where no other engine was given")
