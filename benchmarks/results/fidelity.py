"""How near an engine's outputs are to another engine's: for networks without classes, which have no accuracy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from benchmarks.results.base import Artifact, Common, Record


class OutputFidelity(Record):
    """One output of the engine, over all images."""

    name: str = Field(description="name of the output")
    sqnr_db: float | None = Field(
        description="energy of the other engine's output over that of the difference, in dB; null if they are equal"
    )
    cosine: float = Field(description="cosine of the angle between the two outputs, mean over the images")


class FidelityResult(Common):
    """The outputs of one engine file compared with those of another, image by image."""

    kind: Literal["fidelity"] = "fidelity"
    images: int = Field(description="number of images")
    against: Artifact
    outputs: Annotated[tuple[OutputFidelity, ...], Field(min_length=1)] = Field(description="in the engine's order")

    @property
    def sqnr_db(self) -> float | None:
        """The lowest of the outputs; None if all are equal."""
        return min((one.sqnr_db for one in self.outputs if one.sqnr_db is not None), default=None)

    @property
    def cosine(self) -> float:
        """The lowest of the outputs."""
        return min(one.cosine for one in self.outputs)
