"""``python -m benchmarks.rivals.pruning --model DIR --data CALIB --eval EVAL --out DIR [--ours DIR ...]``.

Compare Torch-Pruning's networks with ours, without training: all are pruned from the same network to the same
latencies, quantized in the same way, and timed in one interleaved run with the dense network's INT8 engine.
``pruning_peer`` says how Torch-Pruning's settings are chosen: on some of the evaluation images, which favours it. A
second run makes only what is missing, and repeats the timing.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter, Token
from numpy.typing import NDArray

from benchmarks.cli import Count, Folder, Images, Preset, Seed, Share, Target, TrustFactory, run
from benchmarks.evaluation.images import calibration_split, evaluation_split
from benchmarks.evaluation.predictions import predict
from benchmarks.results.base import Bounds
from benchmarks.results.latency import LatencyResult
from benchmarks.results.rivals import PrunedNetwork, PruningFile, Rough
from benchmarks.results.tables import interval, literal, markdown, percent, points, show
from benchmarks.rivals.peers.torch_pruning import SETTINGS, Setting
from benchmarks.rivals.pruning_nets import identity, int8_engine, macs_share
from benchmarks.rivals.pruning_peer import RECORD, Made, Pruner, finalists
from benchmarks.statistics import intervals
from benchmarks.timing.machine import host
from benchmarks.timing.presets import PRESETS
from benchmarks.timing.run import measure
from calibration.sampler import calibration_sample
from calibration.split import Split
from compress.commands import command_line
from compress.config import TargetConfig
from compress.console import Console
from compress.errors import BudgetError, ConfigError
from compress.files import MANIFEST, write_atomic, write_json
from compress.models.model import ANY, load_model
from compress.parse import read
from compress.progress import Terminal
from compress.run import Run, read_manifest
from compress.train.evaluate import evaluate

HEADER = ["network", "MACs %", "latency / dense INT8", "top-1 FP32 %", "top-1 INT8 %", "change, points", "pruned in s"]
BEST_HEADER = ["latency at most", "ours", "Torch-Pruning", "difference, points"]
INVALID = 4
OVER = 0.01  # a latency may exceed its budget by this share: the engines were fitted in another run

_ANSWERS = "answers.json"

Right = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class JudgedNetwork:
    """One network, image by image.

    Attributes:
        peer: made by Torch-Pruning.
        macs: share of the dense network's.
        fp32, int8: (N,) whether each image was classified right.
        dense: the same of the dense network in FP32.
        latency: with the ratio to the dense INT8 engine; the dense network's own has none.
        seconds: that pruning took, the search for the ratio not counted; where that is known.
    """

    name: str
    peer: bool
    macs: float
    fp32: Right
    int8: Right
    dense: Right
    latency: LatencyResult
    seconds: float | None

    @property
    def ratio(self) -> Bounds:
        compared = self.latency.comparison
        return Bounds(value=1, lo=1, hi=1) if compared is None else compared.ratio

    def cells(self) -> list[str]:
        return [
            self.name,
            f"{100 * self.macs:.1f}",
            interval(self.ratio, 3) if self.latency.comparison else "1",
            _top1(self.fp32),
            _top1(self.int8),
            points(difference(self.int8, self.dense)),
            "" if self.seconds is None else f"{self.seconds:.0f}",
        ]

    def record(self) -> PrunedNetwork:
        """For ``pruning.json``."""
        return PrunedNetwork(
            name=self.name,
            peer=self.peer,
            macs=self.macs,
            top1_fp32=float(self.fp32.mean()),
            top1_int8=float(self.int8.mean()),
            change=difference(self.int8, self.dense),
            seconds=self.seconds,
            latency=self.latency,
        )


def difference(first: Right, second: Right) -> Bounds:
    """The first accuracy minus the second on the same images, with its 95% interval.

    >>> difference(np.array([True, True]), np.array([True, False])).value
    0.5
    """
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    found = intervals.paired_difference(both, int((first & ~second).sum()), int((~first & second).sum()), neither)
    return Bounds.of(found)


def _top1(right: Right) -> str:
    return percent(Bounds.of(intervals.wilson(int(right.sum()), len(right))))


def best_within(rows: Sequence[JudgedNetwork], budget: float) -> list[str]:
    """The cells that hold our best INT8 network within a latency against the peer's best, where the timing is valid."""
    valid = [row for row in rows if row.latency.comparison and row.latency.verdict.status == "VALID"]
    within = [row for row in valid if row.ratio.value <= budget * (1 + OVER)]
    ours, peer = (
        max((row for row in within if row.peer == peer), key=lambda row: row.int8.mean(), default=None)
        for peer in (False, True)
    )
    gap = points(difference(ours.int8, peer.int8)) if ours and peer else ""
    return [f"{budget:g}", *(f"{100 * row.int8.mean():.1f} ({row.name})" if row else "" for row in (ours, peer)), gap]


@dataclass(frozen=True)
class _Answers:
    """An engine file, and 1 or 0 for each image that was classified right or not."""

    engine: str
    fp32: tuple[int, ...]
    int8: tuple[int, ...]


@dataclass(frozen=True)
class Judge:
    """Quantizes networks on ``sample`` and asks them and their INT8 engines about ``eval``, each once."""

    run: Run
    sample: Split
    eval: Split
    target: TargetConfig
    factory: str = ""

    def __call__(self, folder: Path) -> tuple[Path, Right, Right]:
        """The engine file of a model folder, and which images it gets right in FP32 and in INT8.

        Raises:
            CheckpointError, ModelError, EngineError, DataError: it cannot be read, quantized, built or evaluated.
        """

        def work(out: Path, scratch: Path) -> None:
            model = load_model(folder, self.factory)
            engine = int8_engine(model, self.sample, self.target, out / "net_int8.onnx")
            int8 = predict(engine, self.eval, threads=self.target.threads, progress=self.run.progress).right
            fp32 = evaluate(model.net, self.eval, model.preprocess, progress=self.run.progress).correct
            right = (tuple(each.astype(int).tolist()) for each in (fp32, int8))
            write_json(out / _ANSWERS, asdict(_Answers(engine.name, *right)))

        settings = {
            "sample": identity(self.sample),
            "eval": identity(self.eval),
            "target": self.target.model_dump(mode="json"),
        }
        made = self.run.stage(str(folder).strip("./").replace("/", "-"), work, settings=settings, parents=[folder])
        answers = read(made / _ANSWERS, _Answers, remedy=f"delete the folder {made}")
        return made / answers.engine, np.array(answers.fp32, bool), np.array(answers.int8, bool)


def _setting(_: object, tokens: Sequence[Token]) -> Setting:
    return Setting.parse(tokens[0].value)


Chosen = Annotated[Setting, Parameter(metavar="NAME", converter=_setting, n_tokens=1, accepts_keys=False)]
Settings = Annotated[
    tuple[str, ...], Parameter(metavar="NAME", consume_multiple=True, help="Settings of Torch-Pruning; default: all.")
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is compared.

    Attributes:
        model: Dense network, such as runs/NAME/baseline.
        data: Calibration images.
        eval: Evaluation images, in the same forms.
        out: Folder for networks and results.
        ours: Folders of our pruned networks, such as runs/NAME/prune.
        budgets: Shares of the dense network's latency.
        finalists: Number of Torch-Pruning's settings to fit to each budget.
        images: How many calibration images, class-balanced.
        seed: Which images.
        threads: Intra-op threads of the engines.
        preset: Preset of the timing.
    """

    model: Folder
    data: Images
    eval: Images
    out: Folder
    ours: Annotated[tuple[Path, ...], Parameter(metavar="DIR", consume_multiple=1)] = ()
    peers: Settings = tuple(map(str, SETTINGS))
    budgets: Annotated[tuple[Share, ...], Parameter(metavar="S", consume_multiple=1)] = (0.8, 0.65, 0.5)
    finalists: Count = 2
    images: Count = 300
    seed: Seed = 0
    target: Target = "ort-x86"
    threads: Count = 1
    preset: Preset = "normal"
    trust: TrustFactory = False


def _peers(args: Asked, pruner: Pruner, split: Split, target: TargetConfig) -> tuple[list[Path], list[Rough]]:
    """The folders of the peer's best nets, and all that the first pass has seen."""
    roughs = [
        pruner.rough(setting, budget, split) for setting in map(Setting.parse, args.peers) for budget in args.budgets
    ]
    folders = []
    for setting, budget in finalists(roughs, args.finalists):
        try:
            folders.append(pruner.fitted(setting, budget, target))
        except BudgetError as error:
            pruner.run.progress.note(f"  left out: {error.message}")
    return folders, roughs


def _row(
    folder: Path, judged: tuple[Path, Right, Right], dense: Right, macs: float, latency: LatencyResult
) -> JudgedNetwork:
    peer, stage = folder / RECORD, folder / MANIFEST
    if peer.exists():
        record = read(peer, Made, remedy=f"delete the folder {folder}")
        name = f"Torch-Pruning {record.setting}, {record.ratio:.3f}"
        seconds: float | None = sum(record.seconds.values())
    else:
        made = read_manifest(folder) if stage.exists() else None
        name, seconds = str(folder), made.seconds if made and made.stage == "prune" else None
    return JudgedNetwork(name, peer.exists(), macs, judged[1], judged[2], dense, latency, seconds)


def _report(args: Asked, rows: Sequence[JudgedNetwork], roughs: Sequence[Rough], console: Console) -> None:
    tables = {
        f"{args.model}: pruned without training, {args.images} images; INT8 for {args.target} evaluated on "
        f"{len(rows[0].int8)}; {host().cpu}, {args.threads} thread(s), 95% intervals": (
            HEADER,
            [row.cells() for row in rows],
        ),
        "best INT8 top-1 within a latency": (BEST_HEADER, [best_within(rows, budget) for budget in args.budgets]),
    }
    warnings = [f"{row.name}: {text}" for row in rows for text in (*row.latency.verdict.reasons, *row.latency.warnings)]
    record = PruningFile(host=host(), rows=tuple(row.record() for row in rows), first_pass=tuple(roughs))
    record.write(args.out / "pruning.json")
    text = "\n\n".join(f"# {literal(title)}\n\n{markdown(header, cells)}" for title, (header, cells) in tables.items())
    write_atomic(
        args.out / "pruning.md", text + "\n" + "".join(f"\n- {literal(warning)}" for warning in warnings) + "\n"
    )
    for title, (header, cells) in tables.items():
        show(console, title, header, cells)
        console.print()
    for warning in warnings:
        console.print(f"warning: {warning}", soft_wrap=True)


def pruning(args: Asked) -> int:
    """Compare Torch-Pruning's networks with ours, without training.

    All networks are pruned from the same network to the same latencies, quantized in the same way, and timed in one
    interleaved run with the dense network's INT8 engine. A second run makes only what is missing, and repeats the
    timing.

    Exit code: 0, 1 error, 2 usage, 4 a measurement is invalid, 5 Torch-Pruning or the engine is absent.
    """
    for folder in args.ours:
        if not (folder / "model.json").is_file():
            raise ConfigError(f"--ours {folder} is not a model folder", remedy="give one such as runs/NAME/prune")
    if not args.peers and not args.ours:
        raise ConfigError("nothing to compare", remedy="give --peers or --ours")
    factory = ANY if args.trust else ""
    dense, target = load_model(args.model, factory), TargetConfig(name=args.target, threads=args.threads)
    pool, split = calibration_split(args.data), evaluation_split(args.eval)
    stages = Run(args.out, progress=Terminal())
    sample = pool.subset(calibration_sample(pool, args.images, seed=args.seed, exclude=split), "calibration")
    pruner, judge = (
        Pruner(args.model, sample, stages, factory),
        Judge(Run(args.out / "int8", progress=stages.progress), sample, split, target, factory),
    )
    folders, roughs = _peers(args, pruner, split, target)
    folders = [args.model, *args.ours, *folders]
    judged = [judge(folder) for folder in folders]
    settings = dataclasses.replace(PRESETS[args.preset], threads=args.threads)
    latencies = measure([engine for engine, _, _ in judged], settings, progress=stages.progress)
    of = macs_share(dense)
    rows = [
        _row(folder, found, judged[0][1], of(load_model(folder, factory).net), latency)
        for folder, found, latency in zip(folders, judged, latencies, strict=True)
    ]
    _report(args, rows, roughs, Console())
    return INVALID if any(row.latency.verdict.status == "INVALID" for row in rows) else 0


app = command_line("python -m benchmarks.rivals.pruning")
app.default(pruning)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``pruning``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
