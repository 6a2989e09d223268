"""How good the outputs of several files of one network are: accuracy, or fidelity where there are no classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.evaluation.fidelity import fidelity
from benchmarks.evaluation.pairing import result_of
from benchmarks.evaluation.predictions import predict
from benchmarks.reporting.rows import metadata_of
from benchmarks.results.accuracy import AccuracyResult
from benchmarks.results.fidelity import FidelityResult
from calibration.datasets import Split
from compress.progress import SILENT, Progress


class Quality(NamedTuple):
    """What was measured of one file."""

    accuracy: AccuracyResult | None = None
    fidelity: FidelityResult | None = None


def qualities(files: Sequence[Path], split: Split, *, threads: int = 1, progress: Progress = SILENT) -> list[Quality]:
    """Accuracies, paired with the first file's; of a backbone the outputs of the others compared with the first file's.

    Raises:
        EngineError: a file does not open, or fails; see ``predict`` and ``fidelity``.
    """
    first, *others = files
    if metadata_of(first).classes:
        found = [predict(path, split, threads=threads, progress=progress) for path in files]
        return [Quality(accuracy=result_of(one, None if one is found[0] else found[0])) for one in found]
    near = fidelity(first, others, split, threads=threads, progress=progress)
    return [Quality(), *(Quality(fidelity=one) for one in near)]
