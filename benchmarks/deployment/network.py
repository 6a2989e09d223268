"""An opened engine with what its input and its outputs mean, by the file's own metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from benchmarks.deployment.device import predict as device
from benchmarks.evaluation.images import preprocess_of
from calibration.preprocess import Preprocess
from calibration.transforms import eval_transform
from compress.engines.base import Array, Engine, open_engine
from compress.errors import EngineError

Returns = Literal["logits", "probabilities", "numbers"]
_STRENGTHS = (0.0, 0.3, 1.0, 3.0, 10.0)  # of the noise that shows whether the outputs stay probabilities
_ROUNDED = 0.1  # of the sum of the probabilities: INT8 rounds each


@dataclass(frozen=True, eq=False)
class Network:
    """An engine that takes one image.

    Attributes:
        preprocess: how an image becomes the input.
        classes: the names of the classes; empty for another network than a classifier.
        returns: what the outputs are; ``numbers`` for another network than a classifier.
        batch: how many images the engine takes at once.
    """

    engine: Engine
    preprocess: Preprocess
    classes: tuple[str, ...]
    returns: Returns
    batch: int

    def input(self, image: Image.Image) -> Array:
        """(batch, C, H, W) float32, the same image ``batch`` times.

        Raises:
            DataError: the image is smaller than the input.
        """
        return np.repeat(eval_transform(self.preprocess)(image).numpy()[None], self.batch, axis=0)

    def run(self, x: Array) -> dict[str, Array]:
        """The outputs for the first image of the input, by name.

        Raises:
            EngineError: the engine takes another input, or failed.
        """
        found = self.engine.run({self.engine.inputs[0].name: x})
        return {name: np.atleast_1d(array)[0] for name, array in found.items()}

    @property
    def kind(self) -> Literal["classes", "outputs"]:
        """What ``answer`` lists."""
        return "outputs" if self.returns == "numbers" else "classes"

    def answer(self, outputs: Mapping[str, Array], top: int) -> list[dict[str, Any]]:
        """The ``top`` best classes, or a row of statistics of each output; see ``device.predict.meaning``."""
        return device.meaning(outputs, self.classes, self.returns, top)


@contextmanager
def open_network(path: Path, *, threads: int = 1, device: str | None = None, trust: bool = False) -> Iterator[Network]:
    """Open an engine file, and find out what it returns.

    Raises:
        EngineError: the file does not open, does not state its preprocessing, or has several inputs.
        BackendAbsent: the runtime or its device is not on this machine.
    """
    with open_engine(path, threads=threads, device=device, trust=trust) as engine:
        preprocess = preprocess_of(engine, path)
        if len(engine.inputs) != 1:
            raise EngineError(f"{path} has {len(engine.inputs)} inputs, but an image is only one")
        batch = engine.inputs[0].shape[0] or 1
        network = Network(engine, preprocess, (), "numbers", batch)
        classes = engine.metadata.classes if engine.metadata else ()
        if classes and (returns := _returns(network, len(classes))) != "numbers":
            network = Network(engine, preprocess, classes, returns, batch)
        yield network


def _returns(network: Network, classes: int) -> Returns:
    """Tell logits from probabilities by the outputs for noise of growing strength: logits leave 0 to 1 somewhere."""
    noise = np.random.default_rng(0).standard_normal((network.batch, *network.preprocess.shape)).astype(np.float32)
    runs = [network.run(noise * np.float32(strength)) for strength in _STRENGTHS]
    if len(runs[0]) != 1:
        return "numbers"
    rows = np.stack([next(iter(outputs.values())).ravel() for outputs in runs])
    if rows.shape[1] != classes and not (rows.shape[1] == 1 and classes == 2):
        return "numbers"
    bounded = bool(((rows >= 0) & (rows <= 1)).all())
    if rows.shape[1] > 1:
        bounded = bounded and bool((np.abs(rows.sum(1) - 1) < _ROUNDED).all())
    return "probabilities" if bounded else "logits"
