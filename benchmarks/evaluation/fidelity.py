"""Compare the outputs of engines with those of a reference, image by image; no labels are needed."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.evaluation.images import preprocess_of
from benchmarks.evaluation.predictions import batch_size_of, padded
from benchmarks.results.artifact import artifact
from benchmarks.results.base import BackendInfo, Verdict
from benchmarks.results.fidelity import FidelityResult, OutputFidelity
from benchmarks.timing.machine import host, tool
from calibration.loader import batches
from calibration.split import Split
from calibration.transforms import eval_transform
from compress.engines.base import Array, Engine, open_engine
from compress.errors import EngineError
from compress.export.overflow import overflow_warnings
from compress.progress import SILENT, Progress


class _Compared:
    """The running sums of one output."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.signal = self.noise = self.cosine = 0.0
        self.images = 0

    def add(self, reference: Array, found: Array) -> None:
        """Two outputs (N, ...) for the same images."""
        a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (reference, found))
        self.signal += float(np.square(a).sum())
        self.noise += float(np.square(a - b).sum())
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        alike = np.where((a == b).all(axis=1), 1.0, 0.0)  # the angle to an output of zeros
        self.cosine += float(np.divide((a * b).sum(axis=1), lengths, out=alike, where=lengths > 0).sum())
        self.images += len(a)

    def result(self) -> OutputFidelity:
        sqnr = None
        if self.noise > 0:
            sqnr = 10 * math.log10(max(self.signal, np.finfo(np.float64).tiny) / self.noise)
        return OutputFidelity(name=self.name, sqnr_db=sqnr, cosine=self.cosine / self.images)


def fidelity(
    reference: Path,
    others: Sequence[Path],
    split: Split,
    *,
    batch_size: int = 32,
    threads: int = 1,
    device: str | None = None,
    trust: bool = False,
    argv: Sequence[str] = (),
    progress: Progress = SILENT,
) -> list[FidelityResult]:
    """Run every image through the reference and the other engines; one result for each of ``others``.

    Raises:
        EngineError: a file does not open, does not state its preprocessing, or has other inputs or outputs than the
            reference.
        DataError: an image cannot be read.
    """
    with ExitStack() as stack:
        engines = [
            stack.enter_context(open_engine(path, threads=threads, device=device, trust=trust))
            for path in (reference, *others)
        ]
        preprocess = preprocess_of(engines[0], reference)
        names = [spec.name for spec in engines[0].outputs]
        for engine, path in zip(engines[1:], others, strict=True):
            if preprocess_of(engine, path) != preprocess or [spec.name for spec in engine.outputs] != names:
                raise EngineError(
                    f"{path} has other inputs or outputs than {reference}",
                    remedy="compare files that were exported from the same network",
                )
        size = min(batch_size_of(engine, batch_size)[0] for engine in engines)
        sums = [[_Compared(name) for name in names] for _ in others]
        finite = [True] * len(engines)
        loader = batches(split, eval_transform(preprocess), size)
        for x, _ in progress.track(loader, "comparing outputs"):
            found = [_run(engine, x.numpy()) for engine in engines]
            finite = [
                fine and all(bool(np.isfinite(y).all()) for y in one.values())
                for fine, one in zip(finite, found, strict=True)
            ]
            for mine, outputs in zip(sums, found[1:], strict=True):
                for each in mine:
                    each.add(found[0][each.name], outputs[each.name])
        compared = artifact(reference)
        broken = [path for path, fine in zip((reference, *others), finite, strict=True) if not fine]
        results = []
        for path, engine, mine in zip(others, engines[1:], sums, strict=True):
            reasons = [f"the outputs of {one} hold NaN or infinity" for one in broken if one in (reference, path)]
            results.append(
                FidelityResult(
                    run_id=uuid.uuid4().hex,
                    date=datetime.now(UTC).isoformat(timespec="seconds"),
                    tool=tool(),
                    argv=list(argv),
                    config={},
                    artifact=artifact(path),
                    backend=BackendInfo(
                        name=engine.name, version=engine.version, requested=engine.requested, actual=engine.provider
                    ),
                    host=host(engine.name),
                    modes=dict(engine.modes),
                    warnings=list(overflow_warnings(path, engine.name)),
                    verdict=Verdict(status="INVALID" if reasons else "VALID", reasons=reasons),
                    images=len(split),
                    against=compared,
                    outputs=tuple(each.result() for each in mine),
                )
            )
        return results


def _run(engine: Engine, images: Array) -> dict[str, Array]:
    """All outputs of an engine for some images, by name."""
    size, fixed = batch_size_of(engine, len(images))
    parts = [
        {name: y[: min(size, len(images) - start)] for name, y in _part(engine, images[start : start + size], fixed)}
        for start in range(0, len(images), size)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _part(engine: Engine, images: Array, fixed: int | None) -> list[tuple[str, Array]]:
    return list(engine.run({engine.inputs[0].name: padded(images, fixed)}).items())
