"""``python -m benchmarks.accuracy --engine FILE --data FOLDER [--against OTHER]``: top-1 of the file that ships.

The images go through the engine's own runtime with the preprocessing that the file carries. Against another engine, or
against predictions that were kept of one (``--save-predictions``), every image is a pair, which halves the error of the
difference. ``--max-drop`` and ``--min-ratio`` pass only where the 95% interval rules out that the engine is worse than
they allow: too few images to tell is no pass.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.images import DATA_HELP, evaluation_split
from benchmarks.evaluation.predictions import SUFFIX, TOP, Predictions, load_predictions, predict, save_predictions
from benchmarks.latency import count
from benchmarks.results.schema import Accuracy, AccuracyResult, Bounds, ClassAccuracy, PairedAccuracy, Verdict, dump
from benchmarks.results.tables import emit, interval, percent, points, show
from benchmarks.statistics import intervals
from benchmarks.statistics.paired import paired_ratio
from benchmarks.timing.machine import host, tool
from compress.commands import run_command
from compress.config import load_config
from compress.console import Console
from compress.engines.examine import examine
from compress.errors import ConfigError
from compress.progress import Terminal

__all__ = ["Gates", "Predictions", "compare", "main", "parser", "per_class", "predict", "result_of"]

REGRESSION, INVALID = 3, 4


@dataclass(frozen=True)
class Gates:
    """How much worse than another engine one may be; None: by any amount.

    Attributes:
        max_drop: of top-1, in percentage points.
        min_ratio: least top-1, as a share of the other's.
    """

    max_drop: float | None = None
    min_ratio: float | None = None

    def failures(self, paired: PairedAccuracy) -> list[str]:
        """What the intervals do not rule out, in words; empty where every gate is passed.

        The bound of a two-sided 95% interval is judged: of engines that are exactly at the limit, about one in forty
        passes.
        """
        found = []
        if self.max_drop is not None and (drop := -100 * paired.difference.lo) > self.max_drop:
            found.append(f"a drop of {drop:.2f} points is within the interval, {self.max_drop:g} are allowed")
        if self.min_ratio is not None and (paired.ratio is None or paired.ratio.lo < self.min_ratio):
            if paired.ratio is None:
                least = "the other has none right, there is no ratio"
            else:
                least = f"a ratio of {paired.ratio.lo:.4f} is within the interval"
            found.append(f"{least}, {self.min_ratio:g} is asked for")
        return found


def compare(this: Predictions, other: Predictions) -> PairedAccuracy:
    """Hold two engines' predictions against each other, image by image."""
    mine, theirs = this.right, other.right
    both, neither = int((mine & theirs).sum()), int((~mine & ~theirs).sum())
    only_this, only_other = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
    return PairedAccuracy(
        against=other.artifact,
        top1=_share(theirs),
        per_class=per_class(other),
        only_this=only_this,
        only_other=only_other,
        difference=Bounds.of(intervals.paired_difference(both, only_this, only_other, neither)),
        ratio=Bounds.of(paired_ratio(both, only_this, only_other)) if theirs.any() else None,
        mcnemar_p=intervals.mcnemar(only_this, only_other),
        agreement=float((this.ranked[:, 0] == other.ranked[:, 0]).mean()),
    )


def per_class(found: Predictions) -> list[ClassAccuracy]:
    """Images and right answers of every class that has images, in the order of the logits."""
    present, images = np.unique(found.labels, return_counts=True)
    correct = np.bincount(found.labels[found.right], minlength=len(found.names))
    return [
        ClassAccuracy(index=int(i), name=found.names[i], images=int(n), correct=int(correct[i]))
        for i, n in zip(present, images, strict=True)
    ]


def result_of(this: Predictions, other: Predictions | None = None, *, argv: Sequence[str] = ()) -> AccuracyResult:
    """The record of one engine's accuracy, paired with another's where that is given."""
    both = [this] if other is None else [this, other]
    reasons = [f"the outputs of {one.artifact.path} hold NaN or infinity" for one in both if not one.finite]
    return AccuracyResult(
        run_id=uuid.uuid4().hex,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        tool=tool(),
        argv=list(argv),
        config={},
        artifact=this.artifact,
        backend=this.backend,
        host=host(this.backend.name),
        modes=dict(this.modes),
        warnings=list(dict.fromkeys(text for one in both for text in one.warnings)),
        verdict=Verdict(status="INVALID" if reasons else "VALID", reasons=reasons),
        images=len(this.labels),
        top1=_share(this.right),
        top5=_share((this.ranked == this.labels[:, None]).any(axis=1)) if len(this.names) > TOP else None,
        per_class=per_class(this),
        paired=None if other is None else compare(this, other),
    )


def _share(right: NDArray[np.bool_]) -> Accuracy:
    count = int(right.sum())
    return Accuracy(correct=count, value=Bounds.of(intervals.wilson(count, len(right))))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    p.add_argument("--engine", type=Path, required=True, metavar="FILE", help="engine file (.onnx, .xml, .plan)")
    p.add_argument(
        "--against", type=Path, metavar="OTHER", help="pair every image with this engine's answer, or with a kept .npz"
    )
    p.add_argument("--data", help=DATA_HELP)
    p.add_argument("--config", type=Path, metavar="FILE", help="take the images from this configuration's [data]")
    p.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one key"
    )
    p.add_argument("--batch", type=count, default=32, help="images at once (32)")
    p.add_argument("--threads", type=count, default=os.cpu_count() or 1, help="intra-op threads (all)")
    p.add_argument("--device", choices=("cpu", "cuda"), help="default: the runtime's own")
    p.add_argument("--trust", action="store_true", help="open a plan whose sidecar does not vouch for it")
    p.add_argument("--max-drop", type=_limit, metavar="PP", help="exit 3 unless a larger drop (points) is ruled out")
    p.add_argument(
        "--min-ratio", type=_limit, metavar="R", help="exit 3 unless less than this share of OTHER's top-1 is ruled out"
    )
    p.add_argument("--per-class", action="store_true", help="also print the images and right answers of every class")
    p.add_argument("--save-predictions", type=Path, metavar="FILE.npz", help="keep the answers, for a later --against")
    p.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write the result as a JSON array; - is stdout")
    return p


def _limit(text: str) -> float:
    """A finite number, zero or more, for argparse."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not zero or more")
    return number


def _report(result: AccuracyResult, console: Console, *, classes: bool) -> None:
    row = [Path(result.artifact.path).name, _percent(result.top1), _percent(result.top5), ""]
    rows = [row]
    if (paired := result.paired) is not None:
        row[-1] = points(paired.difference)
        rows.append([Path(paired.against.path).name, _percent(paired.top1), "", ""])
    show(
        console, f"accuracy on {result.images} images, 95% intervals", ["engine", "top-1 %", "top-5 %", "change"], rows
    )
    if paired is not None:
        ratio = "" if paired.ratio is None else f"; ratio {interval(paired.ratio, 4)}"
        console.print(
            f"same answer on {paired.agreement:.1%} of the images; right only here {paired.only_this}, "
            f"only there {paired.only_other} (McNemar p = {paired.mcnemar_p:.3g}){ratio}",
            soft_wrap=True,
        )
    if classes:
        console.print()
        _report_classes(result, console)
    for text in result.warnings:
        console.print(f"warning: {text}", soft_wrap=True)


def _report_classes(result: AccuracyResult, console: Console) -> None:
    header, others = ["class", "images", "right", "%"], None
    if result.paired is not None:
        header.append("right there")
        others = {one.index: one.correct for one in result.paired.per_class}
    rows = []
    for one in result.per_class:
        cells = [one.name, str(one.images), str(one.correct), f"{100 * one.correct / one.images:.1f}"]
        rows.append(cells if others is None else [*cells, str(others[one.index])])
    show(console, "accuracy by class", header, rows)


def _percent(accuracy: Accuracy | None) -> str:
    return "" if accuracy is None else percent(accuracy.value)


def _check(args: argparse.Namespace) -> None:
    """Usage that argparse does not know to be wrong."""
    for flag, value in (("--max-drop", args.max_drop), ("--min-ratio", args.min_ratio)):
        if value is not None and args.against is None:
            raise ConfigError(f"{flag} needs something to compare with", remedy="give --against OTHER")
    if args.data is None and args.config is None and not args.overrides:
        raise ConfigError("no images are given", remedy=f"give --data ({DATA_HELP}), --config or --set")
    if args.save_predictions is not None and args.save_predictions.suffix != SUFFIX:
        raise ConfigError(f"--save-predictions {args.save_predictions}: the file's name must end in {SUFFIX}")


def _command(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    _check(args)
    split = evaluation_split(args.data, load_config(args.config, args.overrides))
    settings = {"batch_size": args.batch, "threads": args.threads, "device": args.device, "trust": args.trust}
    progress = Terminal()
    other: Predictions | None = None
    if args.against is not None and args.against.suffix == SUFFIX:
        other = load_predictions(args.against, split)  # refused before the engine runs
    for path in (args.engine, args.against):
        if path is not None:
            examine(path)
    this = predict(args.engine, split, **settings, progress=progress)
    if args.against is not None and other is None:
        other = predict(args.against, split, **settings, progress=progress)
    result = result_of(this, other, argv=sys.argv if argv is None else argv)
    console = Console(stderr=args.json == "-")
    if args.json is not None:
        emit(dump([result]), args.json)
    _report(result, console, classes=args.per_class)
    for reason in result.verdict.reasons:
        console.print(f"INVALID: {reason}", soft_wrap=True)
    if result.verdict.status == "INVALID":
        return INVALID
    if args.save_predictions is not None:
        save_predictions(this, split, args.save_predictions)
        console.print(f"written: {args.save_predictions}", soft_wrap=True)
    failures = [] if result.paired is None else Gates(args.max_drop, args.min_ratio).failures(result.paired)
    for failure in failures:
        console.print(f"REGRESSION: {failure}", soft_wrap=True)
    return REGRESSION if failures else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 error, 2 usage, 3 regression, 4 the measurement is invalid, 5 backend absent."""
    return run_command(lambda: _command(argv))


if __name__ == "__main__":
    sys.exit(main())
