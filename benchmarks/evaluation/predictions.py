"""An engine's prediction for every image: from the engine itself, or from a file that an earlier run has saved.

A saved file (``.npz``, arrays only, never pickle) holds the SHA-256 of every image, so that it can only be paired with
predictions of the same images.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.images import preprocess_of
from benchmarks.results.artifact import artifact
from benchmarks.results.base import Artifact, BackendInfo
from calibration.datasets import Split, check_classes
from calibration.loader import batches
from calibration.transforms import eval_transform
from compress.engines.base import Array, Engine, infer, open_engine
from compress.errors import DataError
from compress.export.overflow import overflow_warnings
from compress.files import write_atomic
from compress.parse import brief, parse
from compress.progress import SILENT, Progress

SUFFIX = ".npz"
TOP = 5
_SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of one engine.

    Attributes:
        artifact: the engine file.
        backend, modes: the runtime, and how the engine was opened.
        names: of the classes, one a logit.
        labels: (N,) the true classes.
        ranked: (N, 5) the five best classes, best first; fewer columns where there are fewer classes.
        finite: no logit was NaN or infinite.
        warnings: what a reader of the accuracy should know.
    """

    artifact: Artifact
    backend: BackendInfo
    modes: Mapping[str, str | int | bool]
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    ranked: NDArray[np.int64]
    finite: bool
    warnings: tuple[str, ...]

    @property
    def right(self) -> NDArray[np.bool_]:
        """(N,) whether the best class is the true one."""
        return np.equal(self.ranked[:, 0], self.labels)


@dataclass(frozen=True, eq=False)
class Scored(Predictions):
    """Predictions together with their logits.

    Attributes:
        logits: (N, classes) float32.
    """

    logits: Array


def predict(
    path: Path,
    split: Split,
    *,
    batch_size: int = 32,
    threads: int = 1,
    device: str | None = None,
    trust: bool = False,
    progress: Progress = SILENT,
) -> Scored:
    """Run every image of ``split`` through an engine.

    Raises:
        EngineError: the file does not open, does not state its preprocessing, or takes another input shape than it
            states.
        DataError: the engine's classes are not the data's, or an image cannot be read.
    """
    with open_engine(path, threads=threads, device=device, trust=trust) as engine:
        preprocess = preprocess_of(engine, path)
        if (classes := engine.outputs[0].shape[-1]) is not None:
            check_classes(split, max(classes, 2))  # before any image is decoded
        named = engine.metadata.classes if engine.metadata else ()
        warnings = (*_check_names(named, split, path), *overflow_warnings(path, engine.name))
        size, fixed = batch_size_of(engine, batch_size)
        logits, labels = [], []
        loader = batches(split, eval_transform(preprocess), size)
        for x, y in progress.track(loader, path.name):
            logits.append(infer(engine, padded(x.numpy(), fixed))[: len(y)])
            labels.append(y.numpy())
        backend = BackendInfo(
            name=engine.name, version=engine.version, requested=engine.requested, actual=engine.provider
        )
        modes = engine.modes
    scores = np.concatenate(logits)
    if scores.shape[1] == 1:
        scores = two_classes(scores)
    check_classes(split, count := scores.shape[1])
    known = (named, () if split.indexed else split.classes, tuple(map(str, range(count))))
    return Scored(
        artifact=artifact(path),
        backend=backend,
        modes=modes,
        names=next(names for names in known if len(names) == count),
        labels=np.concatenate(labels),
        ranked=np.argsort(-scores, axis=1, kind="stable")[:, :TOP],
        finite=bool(np.isfinite(scores).all()),
        warnings=warnings,
        logits=scores,
    )


def two_classes(score: Array) -> Array:
    """The scores (N, 2) of two classes from one output (N, 1): a logit of the second, or its probability (0 to 1).

    >>> two_classes(np.array([[0.2], [0.9]])).argmax(1), two_classes(np.array([[-3.0], [0.4]])).argmax(1)
    (array([0, 1]), array([0, 1]))
    """
    threshold = 0.5 if ((score >= 0) & (score <= 1)).all() else 0.0
    return np.concatenate([np.full_like(score, threshold), score], axis=1)


def save_predictions(found: Predictions, split: Split, path: Path) -> None:
    """Save predictions for ``load_predictions``; the file is written atomically.

    Args:
        split: the images that were predicted.
        path: ends in ``.npz``.
    """
    record = {
        "artifact": found.artifact.model_dump(),
        "backend": found.backend.model_dump(),
        "modes": dict(found.modes),
        "names": found.names,
        "warnings": found.warnings,
    }
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        schema_version=np.int64(_SCHEMA),
        record=np.array(json.dumps(record)),
        labels=found.labels.astype(np.int32),
        ranked=found.ranked.astype(np.int32),
        finite=np.bool_(found.finite),
        images=image_digests(split),
    )
    write_atomic(path, buffer.getvalue())


def load_predictions(path: Path, split: Split) -> Predictions:
    """Read what ``save_predictions`` wrote, and check that it is of the images of ``split``.

    Raises:
        DataError: there is no such file, or it does not hold predictions, or it is of another schema version, other
            images or other labels.
    """
    remedy = "make it again with `python -m benchmarks.accuracy --engine FILE --data DIR --save-predictions FILE.npz`"
    held = _arrays(path, remedy)
    if (version := int(held["schema_version"])) != _SCHEMA:
        raise DataError(f"{path} has schema version {version}, this version reads {_SCHEMA}", remedy=remedy)
    record = parse(str(held["record"]), _Record, f"{path}, record", remedy=remedy, error=DataError)
    found = Predictions(
        artifact=record.artifact,
        backend=record.backend,
        modes=record.modes,
        names=record.names,
        labels=held["labels"].astype(np.int64),
        ranked=held["ranked"].astype(np.int64),
        finite=bool(held["finite"]),
        warnings=record.warnings,
    )
    if not found.names or found.ranked.shape[1] != min(TOP, len(found.names)):
        raise DataError(
            f"{path} is damaged: it ranks {found.ranked.shape[1]} of {len(found.names)} classes", remedy=remedy
        )
    _check_same(path, found, held["images"], split, remedy)
    for name, values in (("labels", found.labels), ("ranked", found.ranked)):
        if values.size and not 0 <= values.min() <= values.max() < len(found.names):
            raise DataError(f"{path} is damaged: '{name}' has numbers that are not classes", remedy=remedy)
    return found


@dataclass(frozen=True)
class _Record:
    """The JSON part of a saved file."""

    artifact: Artifact
    backend: BackendInfo
    modes: Mapping[str, str | int | bool]
    names: tuple[str, ...]
    warnings: tuple[str, ...]


_FORMS = {"schema_version": ("i", 0), "record": ("U", 0), "labels": ("i", 1), "ranked": ("i", 2), "finite": ("b", 0)}
_FORMS |= {"images": ("u", 2)}  # kind and number of axes of each array
_MOST_UNPACKED = 1 << 30


def _arrays(path: Path, remedy: str) -> dict[str, NDArray[Any]]:
    """The arrays of a saved file. Each shape is checked against the file's size before memory is allocated.

    Raises:
        DataError: it is not such a file.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is not a regular file", remedy=remedy)
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: _array(archive, name, *form) for name, form in _FORMS.items()}
    except FileNotFoundError:
        raise DataError(f"cannot read the predictions {path}: there is no such file", remedy=remedy) from None
    except Exception as error:  # damaged bytes make the readers of zip and npy raise nearly anything
        raise DataError(f"{path} does not hold predictions: {brief(error)}", remedy=remedy) from None


def _array(archive: zipfile.ZipFile, name: str, kind: str, axes: int) -> NDArray[Any]:
    entry = archive.getinfo(f"{name}.npy")
    if entry.file_size > _MOST_UNPACKED:
        raise ValueError(f"'{name}' unpacks to {entry.file_size} bytes")
    with archive.open(entry) as file:
        if (version := np.lib.format.read_magic(file)) != (1, 0):
            raise ValueError(f"'{name}' is of npy version {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.kind != kind or len(shape) != axes:
            raise ValueError(f"'{name}' holds {dtype} of shape {shape}")
        if math.prod(shape) * dtype.itemsize > entry.file_size:
            raise ValueError(f"'{name}' of shape {shape} is cut off")
    with archive.open(entry) as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def image_digests(split: Split) -> NDArray[np.uint8]:
    """(N, 32) SHA-256 of each image's file, or of its pixels where it has none."""
    digests = b"".join(bytes.fromhex(split.digest(i)) for i in range(len(split)))
    return np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32)


def _check_same(path: Path, found: Predictions, images: NDArray[np.uint8], split: Split, remedy: str) -> None:
    if images.shape != (len(split), 32) or len(found.labels) != len(split) or len(found.ranked) != len(split):
        raise DataError(
            f"{path} is of {len(found.labels)} images, but there are {len(split)} {split.name} images to pair it with",
            remedy=f"give the images that it was made on, or {remedy}",
        )
    if others := int((images != image_digests(split)).any(axis=1).sum()):
        raise DataError(
            f"{path} is of other images: {others} of {len(split)} differ, or are in another order",
            remedy=f"give the images that it was made on, or {remedy}",
        )
    if others := int((found.labels != split.labels).sum()):
        raise DataError(f"{path} is of the same images, but {others} of their labels have changed", remedy=remedy)


def _check_names(named: tuple[str, ...], split: Split, path: Path) -> tuple[str, ...]:
    """Compare the engine's class names with the data's; return a warning if no name is in both.

    Raises:
        DataError: they share names, but not the same name at every position.
    """
    if split.indexed or len(named) != len(split.classes) or named == split.classes:
        return ()
    where = next(i for i, pair in enumerate(zip(named, split.classes, strict=True)) if pair[0] != pair[1])
    differ = f"class {where} is '{named[where]}' to {path.name} and '{split.classes[where]}' to the images"
    if set(named) & set(split.classes):
        raise DataError(f"other classes: {differ}", remedy="give images with the class folders of the training images")
    return (f"the classes have other names: {differ}; they are taken to be the same by position",)


def batch_size_of(engine: Engine, wanted: int) -> tuple[int, int | None]:
    """How many images to run at once, and the batch that the engine insists on, if it does."""
    fixed = engine.inputs[0].shape[0]
    return fixed or min(wanted, engine.max_batch or wanted), fixed


def padded(x: Array, size: int | None) -> Array:
    missing = 0 if size is None else size - len(x)
    return x if missing == 0 else np.concatenate([x, np.repeat(x[-1:], missing, axis=0)])
