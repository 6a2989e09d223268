"""What is checked: a trained network, or an engine file, as a function of images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torchvision.models as tv
from numpy.typing import NDArray

from calibration.preprocess import Preprocess
from compress.check.search import Predict
from compress.config import DataConfig, ModelConfig
from compress.data import preprocess_of
from compress.engines.base import Engine, infer, open_engine
from compress.engines.examine import examine
from compress.errors import ModelError
from compress.files import file_sha256
from compress.models.checkpoint import load_trained
from compress.models.registry import preprocessing_of
from compress.progress import Progress

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Checked:
    """A network to check.

    Attributes:
        preprocess: as configured, or as the file says.
        outputs: how many logits it has.
        resizable: it takes inputs of any size.
        in_file: the preprocessing is stored in the file.
    """

    predict: Predict
    preprocess: Preprocess
    outputs: int
    resizable: bool
    in_file: bool


@contextmanager
def opened(
    model: ModelConfig, file: Path | None, data: DataConfig, threads: int, progress: Progress
) -> Iterator[Checked]:
    """The network of ``model``, or that of an engine file if one is given.

    Raises:
        CheckpointError, EngineError, ModelError: it cannot be opened, or is no classifier of such images.
    """
    if file is None:
        yield _network(model, data, progress)
        return
    examine(file)
    with open_engine(file, threads=threads) as engine:
        yield _engine(engine, data)


def _network(model: ModelConfig, data: DataConfig, progress: Progress) -> Checked:
    preprocess = preprocess_of(data, preprocessing_of(model.arch))
    net = load_trained(model, shape=preprocess.shape, progress=progress)

    @torch.inference_mode()
    def predict(x: Array) -> Array:
        found = net(torch.from_numpy(x))
        if not isinstance(found, torch.Tensor):
            raise ModelError(f"the network returns a {type(found).__name__}, not one tensor of logits")
        return _logits(found.float().numpy())

    outputs = predict(np.zeros((1, *preprocess.shape), np.float32)).shape[1]
    other = replace(preprocess, size=max(preprocess.sides) + 32)
    try:
        resizable = predict(np.zeros((1, *other.shape), np.float32)).shape[1] == outputs
    except (RuntimeError, ModelError):  # a classifier of a fixed number of pixels
        resizable = False
    return Checked(predict, preprocess, outputs, resizable, in_file=False)


def _engine(engine: Engine, data: DataConfig) -> Checked:
    batch, *shape = engine.inputs[0].shape

    def predict(x: Array) -> Array:
        size = batch or engine.max_batch or len(x)
        parts = [x[i : i + size] for i in range(0, len(x), size)]
        if batch:
            parts = [np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)]) for part in parts]
        return np.concatenate([_logits(infer(engine, part)) for part in parts])[: len(x)]

    if engine.metadata is not None:
        preprocess = engine.metadata.preprocess
    else:
        given = {} if None in shape else {"channels": shape[0], "input_size": (shape[1], shape[2])}
        preprocess = preprocess_of(data, given)
    outputs = predict(np.zeros((1, *preprocess.shape), np.float32)).shape[1]
    return Checked(predict, preprocess, outputs, resizable=False, in_file=engine.metadata is not None)


def _logits(found: Array) -> Array:
    if found.ndim != 2:
        raise ModelError(f"the network returns {found.shape} for a batch, not (images, classes)")
    return found


def published_top1(model: ModelConfig) -> tuple[str, float] | None:
    """The name and ImageNet top-1 (percent) of torchvision's weights, if these are some: the file's hash tells.

    Without a file, those that ``torchvision`` would download.
    """
    if model.weights is None or model.arch not in tv.list_models():
        return None
    known = tv.get_model_weights(model.arch)
    if model.weights == "torchvision":
        return _row(known.DEFAULT)
    digest = file_sha256(Path(model.weights))
    return next((_row(one) for one in known if one.url.rpartition("-")[2].startswith(digest[:8])), None)


def _row(weights: tv.WeightsEnum) -> tuple[str, float]:
    return str(weights), float(weights.meta["_metrics"]["ImageNet-1K"]["acc@1"])
