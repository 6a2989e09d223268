"""``python -m benchmarks.accuracy --engine FILE --data FOLDER [--against OTHER]``: top-1 of the file that ships.

The images go through the engine's own runtime with the preprocessing that the file carries. Against another engine
every image is a pair, which halves the error of the difference.
"""

from __future__ import annotations

import argparse
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import stats
from benchmarks.environment import host, tool
from benchmarks.images import DATA_HELP, evaluation_split, preprocess_of
from benchmarks.latency import count
from benchmarks.schema import Accuracy, AccuracyResult, BackendInfo, PairedAccuracy, Verdict, dump
from benchmarks.tables import emit, percent, points, show
from benchmarks.timing import artifact, bounds
from calibration.datasets import Split, check_classes
from calibration.loader import batches
from calibration.transforms import eval_transform
from compress.cli import run_command
from compress.config import load_config
from compress.engines.base import Array, Engine, infer, open_engine
from compress.errors import ConfigError
from compress.progress import SILENT, Progress, Terminal

REGRESSION, INVALID = 3, 4
_TOP = 5


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one engine said of each image.

    Attributes:
        path: the engine file.
        labels: (N,) the right classes.
        logits: (N, classes) float32.
        ranked: (N, 5) the five best classes, best first; fewer columns where there are fewer classes.
        classes: number of logits.
        finite: no logit was NaN or infinite.
        backend, modes: what ran.
    """

    path: Path
    labels: NDArray[np.int64]
    logits: Array
    ranked: NDArray[np.int64]
    classes: int
    finite: bool
    backend: BackendInfo
    modes: Mapping[str, str | int | bool]

    @property
    def right(self) -> NDArray[np.bool_]:
        """(N,) whether the best class is the right one."""
        return np.equal(self.ranked[:, 0], self.labels)


def predict(
    path: Path,
    split: Split,
    *,
    batch_size: int = 32,
    threads: int = 1,
    device: str | None = None,
    trust: bool = False,
    progress: Progress = SILENT,
) -> Predictions:
    """Run every image of ``split`` through an engine.

    Raises:
        EngineError: the file does not open, or does not say how its images are prepared.
        DataError: the engine's classes are not the data's, or an image cannot be read.
    """
    with open_engine(path, threads=threads, device=device, trust=trust) as engine:
        preprocess = preprocess_of(engine, path)
        if (classes := engine.outputs[0].shape[-1]) is not None:
            check_classes(split, classes)  # before any image is decoded
        size, fixed = _batch_size(engine, batch_size)
        logits, labels = [], []
        loader = batches(split, eval_transform(preprocess), size)
        for x, y in progress.track(loader, path.name):
            logits.append(infer(engine, _padded(x.numpy(), fixed))[: len(y)])
            labels.append(y.numpy())
        backend = BackendInfo(
            name=engine.name, version=engine.version, requested=engine.requested, actual=engine.provider
        )
        modes = engine.modes
    scores = np.concatenate(logits)
    check_classes(split, scores.shape[1])
    return Predictions(
        path=path,
        labels=np.concatenate(labels),
        logits=scores,
        ranked=np.argsort(-scores, axis=1, kind="stable")[:, :_TOP],
        classes=scores.shape[1],
        finite=bool(np.isfinite(scores).all()),
        backend=backend,
        modes=modes,
    )


def compare(this: Predictions, other: Predictions) -> PairedAccuracy:
    """Hold two engines' predictions against each other, image by image."""
    mine, theirs = this.right, other.right
    both, neither = int((mine & theirs).sum()), int((~mine & ~theirs).sum())
    only_this, only_other = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
    return PairedAccuracy(
        against=artifact(other.path),
        top1=_share(theirs),
        only_this=only_this,
        only_other=only_other,
        difference=bounds(stats.paired_difference(both, only_this, only_other, neither)),
        mcnemar_p=stats.mcnemar(only_this, only_other),
        agreement=float((this.ranked[:, 0] == other.ranked[:, 0]).mean()),
    )


def result_of(this: Predictions, other: Predictions | None = None, *, argv: Sequence[str] = ()) -> AccuracyResult:
    """The record of one engine's accuracy, paired with another's where that is given."""
    broken = [str(p.path) for p in (this, other) if p is not None and not p.finite]
    reasons = [f"the outputs of {path} hold NaN or infinity" for path in broken]
    return AccuracyResult(
        run_id=uuid.uuid4().hex,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        tool=tool(),
        argv=list(argv),
        config={},
        artifact=artifact(this.path),
        backend=this.backend,
        host=host(),
        modes=dict(this.modes),
        warnings=[],
        verdict=Verdict(status="INVALID" if reasons else "VALID", reasons=reasons),
        images=len(this.labels),
        top1=_share(this.right),
        top5=_share((this.ranked == this.labels[:, None]).any(axis=1)) if this.classes > _TOP else None,
        paired=None if other is None else compare(this, other),
    )


def _share(right: NDArray[np.bool_]) -> Accuracy:
    count = int(right.sum())
    return Accuracy(correct=count, value=bounds(stats.wilson(count, len(right))))


def _batch_size(engine: Engine, wanted: int) -> tuple[int, int | None]:
    """How many images to run at once, and the batch that the engine insists on, if it does."""
    fixed = engine.inputs[0].shape[0]
    return fixed or min(wanted, engine.max_batch or wanted), fixed


def _padded(x: Array, size: int | None) -> Array:
    missing = 0 if size is None else size - len(x)
    return x if missing == 0 else np.concatenate([x, np.repeat(x[-1:], missing, axis=0)])


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    p.add_argument("--engine", type=Path, required=True, metavar="FILE", help="engine file (.onnx, .xml, .plan)")
    p.add_argument("--against", type=Path, metavar="OTHER", help="pair every image with this engine's answer")
    p.add_argument("--data", help=DATA_HELP)
    p.add_argument("--config", type=Path, metavar="FILE", help="take the images from this configuration's [data]")
    p.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one key"
    )
    p.add_argument("--batch", type=count, default=32, help="images at once (32)")
    p.add_argument("--threads", type=count, default=os.cpu_count() or 1, help="intra-op threads (all)")
    p.add_argument("--device", choices=("cpu", "cuda"), help="default: the runtime's own")
    p.add_argument("--trust", action="store_true", help="open a plan whose sidecar does not vouch for it")
    p.add_argument(
        "--max-drop", type=float, metavar="PP", help="exit 3 unless a drop of more percentage points is ruled out"
    )
    p.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write the result as a JSON array; - is stdout")
    return p


def _report(result: AccuracyResult, console: Console) -> None:
    row = [Path(result.artifact.path).name, _percent(result.top1), _percent(result.top5), ""]
    rows = [row]
    if (paired := result.paired) is not None:
        row[-1] = points(paired.difference)
        rows.append([Path(paired.against.path).name, _percent(paired.top1), "", ""])
    show(
        console, f"accuracy on {result.images} images, 95% intervals", ["engine", "top-1 %", "top-5 %", "change"], rows
    )
    if paired is not None:
        console.print(
            f"same answer on {paired.agreement:.1%} of the images; right only here {paired.only_this}, "
            f"only there {paired.only_other} (McNemar p = {paired.mcnemar_p:.3g})",
            soft_wrap=True,
        )


def _percent(accuracy: Accuracy | None) -> str:
    return "" if accuracy is None else percent(accuracy.value)


def _command(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    if args.max_drop is not None and args.against is None:
        raise ConfigError("--max-drop needs something to drop from", remedy="give --against OTHER")
    if args.data is None and args.config is None and not args.overrides:
        raise ConfigError("no images are given", remedy=f"give --data ({DATA_HELP}), --config or --set")
    split = evaluation_split(args.data, load_config(args.config, args.overrides))
    settings = {"batch_size": args.batch, "threads": args.threads, "device": args.device, "trust": args.trust}
    progress = Terminal()
    this = predict(args.engine, split, **settings, progress=progress)
    other = None if args.against is None else predict(args.against, split, **settings, progress=progress)
    result = result_of(this, other, argv=sys.argv if argv is None else argv)
    console = Console(stderr=args.json == "-", highlight=False)
    if args.json is not None:
        emit(dump([result]), args.json)
    _report(result, console)
    for reason in result.verdict.reasons:
        console.print(f"INVALID: {reason}", markup=False, soft_wrap=True)
    if result.verdict.status == "INVALID":
        return INVALID
    if args.max_drop is not None and result.paired is not None and -100 * result.paired.difference.lo > args.max_drop:
        console.print(
            f"REGRESSION: a drop of {-100 * result.paired.difference.lo:.2f} points is within the interval, "
            f"{args.max_drop} are allowed",
            soft_wrap=True,
        )
        return REGRESSION
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 error, 2 usage, 3 regression, 4 the measurement is invalid, 5 backend absent."""
    return run_command(lambda: _command(argv))


if __name__ == "__main__":
    sys.exit(main())
