"""The form of what ``predict`` writes."""

from __future__ import annotations

from pydantic import Field

from benchmarks.results.base import Artifact, BackendInfo, Record, Tool


class ClassShare(Record):
    """A class that an image may show."""

    name: str
    index: int = Field(description="number of the class, from 0")
    probability: float


class Numbers(Record):
    """An output of a network that is no classifier."""

    name: str
    shape: list[int] = Field(description="without the batch")
    min: float | None = None
    mean: float | None = None
    max: float | None = None
    std: float | None = None


class Answer(Record):
    """What the engine finds in one image."""

    image: str = Field(description="path as it was given, or as it was found in a folder")
    classes: list[ClassShare] = Field(default_factory=list, description="the best classes, best first")
    outputs: list[Numbers] = Field(default_factory=list, description="of a network that is no classifier")


class PredictFile(Record):
    """The answers of an engine to single images."""

    tool: Tool
    artifact: Artifact
    backend: BackendInfo
    threads: int = Field(description="intra-op threads")
    latency_ms: float | None = Field(description="median of a few runs, for a first look: latency measures it")
    answers: list[Answer]
    errors: list[str] = Field(description="images that could not be read, or are smaller than the input")
