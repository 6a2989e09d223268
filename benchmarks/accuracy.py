"""``python -m benchmarks.accuracy --engine FILE --data FOLDER [--against OTHER]``: measure the top-1 accuracy."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from benchmarks.cli import (
    GATES,
    INVALID,
    OUTPUT,
    REGRESSION,
    SCENARIO,
    Configured,
    Count,
    Device,
    EngineFile,
    Images,
    JsonFile,
    TrustPlan,
    run,
    words,
)
from benchmarks.evaluation import DATA_HELP
from compress.commands import CONFIGURATION, command_line
from compress.console import Console
from compress.errors import ConfigError

_SUFFIX = ".npz"  # of saved predictions

Limit = Annotated[float, Parameter(validator=Number(gte=0, lt=float("inf")))]


@Parameter(name="*", group=SCENARIO)
@dataclass(frozen=True, kw_only=True)
class Scenario:
    """How the engine runs.

    Attributes:
        batch: Batch size.
        threads: Intra-op threads.
        device: Default: the engine's own.
    """

    batch: Count = 32
    threads: Count = field(default_factory=lambda: os.cpu_count() or 1)
    device: Device | None = None
    trust: TrustPlan = False


def accuracy(
    engine: EngineFile,
    *,
    against: Annotated[Path | None, Parameter(metavar="OTHER")] = None,
    data: Annotated[Images | None, Parameter(group=CONFIGURATION)] = None,
    configured: Configured = Configured(),
    scenario: Scenario = Scenario(),
    max_drop: Annotated[Limit | None, Parameter(metavar="PP", group=GATES)] = None,
    min_ratio: Annotated[Limit | None, Parameter(metavar="R", group=GATES)] = None,
    per_class: Annotated[bool, Parameter(group=OUTPUT)] = False,
    save_predictions: Annotated[Path | None, Parameter(metavar="FILE.npz", group=OUTPUT)] = None,
    json: JsonFile = None,
) -> int:
    """Measure the top-1 accuracy of an engine file on labelled images.

    A network without classes has no accuracy: with --against its outputs are compared with OTHER's (SQNR and cosine).
    The images go through the engine's own runtime, with the preprocessing that is stored in the file. --against
    compares with another engine, or with its saved predictions (--save-predictions), image by image: this halves the
    error of the difference. --max-drop and --min-ratio pass only if the whole 95% interval is within the limit: an
    inconclusive result fails.

    Exit code: 0, 1 error, 2 usage, 3 regression, 4 the measurement is invalid, 5 engine absent.

    Args:
        against: Compare with this engine file, or with the .npz of its saved predictions, image by image.
        max_drop: Exit 3 unless the 95% interval excludes a larger drop of top-1, in percentage points.
        min_ratio: Exit 3 unless the 95% interval excludes a smaller ratio of top-1 to OTHER's top-1.
        per_class: Also print the accuracy of every class.
        save_predictions: Save the predictions for a later --against.
    """
    for flag, value in (("--max-drop", max_drop), ("--min-ratio", min_ratio)):
        if value is not None and against is None:
            raise ConfigError(f"{flag} needs something to compare with", remedy="give --against OTHER")
    if data is None and configured == Configured():
        raise ConfigError("no images are given", remedy=f"give --data ({DATA_HELP}), --config or --set")
    if save_predictions is not None and save_predictions.suffix != _SUFFIX:
        raise ConfigError(f"--save-predictions {save_predictions}: the file's name must end in {_SUFFIX}")

    from benchmarks.evaluation.images import evaluation_split
    from benchmarks.evaluation.pairing import Gates, result_of
    from benchmarks.evaluation.predictions import load_predictions, predict
    from benchmarks.evaluation.predictions import save_predictions as save
    from benchmarks.reporting.accuracy import report
    from benchmarks.results.base import dump
    from benchmarks.results.tables import emit
    from compress.engines.base import open_engine
    from compress.engines.examine import examine
    from compress.progress import Terminal

    split = evaluation_split(data, configured.load())
    kept = against is not None and against.suffix == _SUFFIX
    other = load_predictions(against, split) if against is not None and kept else None  # fails before the engine runs
    for path in (engine, against):
        if path is not None:
            examine(path)

    how: dict[str, Any] = {
        "split": split,
        "batch_size": scenario.batch,
        "threads": scenario.threads,
        "device": scenario.device,
        "trust": scenario.trust,
        "progress": Terminal(),
    }
    console = Console(stderr=json == "-")
    with open_engine(engine, threads=scenario.threads, device=scenario.device, trust=scenario.trust) as opened:
        has_classes = opened.metadata is None or bool(opened.metadata.classes)
    if not has_classes:
        if against is None or kept or save_predictions is not None or (max_drop, min_ratio) != (None, None):
            raise ConfigError(
                f"{engine} has no classes, so it has no accuracy",
                remedy="compare its outputs with those of another engine: --against OTHER, without gates",
            )
        return _compared(engine, against, how, console, json)

    this = predict(engine, **how)
    if against is not None and not kept:
        other = predict(against, **how)
    result = result_of(this, other, argv=words())
    if json is not None:
        emit(dump([result]), json)
    report(result, console, classes=per_class)
    for reason in result.verdict.reasons:
        console.print(f"INVALID: {reason}", soft_wrap=True)
    if result.verdict.status == "INVALID":
        return INVALID
    if save_predictions is not None:
        save(this, split, save_predictions)
        console.print(f"written: {save_predictions}", soft_wrap=True)
    failures = [] if result.paired is None else Gates(max_drop, min_ratio).failures(result.paired)
    for failure in failures:
        console.print(f"REGRESSION: {failure}", soft_wrap=True)
    return REGRESSION if failures else 0


def _compared(engine: Path, against: Path, how: Mapping[str, Any], console: Console, json: str | None) -> int:
    """Compare the outputs of two engines without classes."""
    from benchmarks.evaluation.fidelity import fidelity
    from benchmarks.reporting.accuracy import report_fidelity
    from benchmarks.results.base import dump
    from benchmarks.results.tables import emit

    (found,) = fidelity(against, [engine], argv=words(), **how)
    if json is not None:
        emit(dump([found]), json)
    report_fidelity(found, console)
    for reason in found.verdict.reasons:
        console.print(f"INVALID: {reason}", soft_wrap=True)
    return 0 if found.verdict.status == "VALID" else INVALID


app = command_line("python -m benchmarks.accuracy")
app.default(accuracy)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``accuracy``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
