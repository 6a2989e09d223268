"""``python -m benchmarks.rivals.pruning_stage --model DIR --data TRAIN --setting NAME --budget S --run RUN``: a peer's.

Torch-Pruning's network takes the place of a run's stage ``prune``, with the dense network as its ``baseline``.
``python -m compress finetune``, ``quantize`` and ``export`` with ``--set run.dir=RUN`` go on from there as with ours.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.evaluation.images import DATA_HELP, calibration_split
from benchmarks.latency import count, seed
from benchmarks.rivals.peers.torch_pruning import SETTINGS, Setting
from benchmarks.rivals.pruning import share
from benchmarks.rivals.pruning_peer import RECORD, Made, Pruner
from calibration.sampler import calibration_sample
from compress import targets
from compress.commands import run_command
from compress.config import TargetConfig
from compress.errors import ConfigError
from compress.files import MANIFEST, tree_sha256
from compress.models.model import ANY, TRUST
from compress.parse import read
from compress.progress import Terminal
from compress.run import Run


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.rivals.pruning_stage", description=__doc__)
    p.add_argument("--model", type=Path, required=True, metavar="DIR", help="dense network: runs/NAME/baseline")
    p.add_argument("--trust", action="store_true", help=TRUST)
    p.add_argument("--data", required=True, help=f"labelled training images: {DATA_HELP}")
    p.add_argument("--images", type=count, default=300, metavar="N", help="how many of them, class-balanced (300)")
    p.add_argument("--seed", type=seed, default=0, help="which images (0)")
    names = ", ".join(map(str, SETTINGS))
    p.add_argument("--setting", type=Setting.parse, required=True, metavar="NAME", help=f"one of {names}")
    p.add_argument("--budget", type=share, required=True, metavar="S", help="of the dense INT8 engine's latency: 0.5")
    p.add_argument("--macs", action="store_true", help="the budget is a share of the MACs")
    p.add_argument("--target", default="ort-x86", choices=targets.names(), help="the INT8 file's (ort-x86)")
    p.add_argument("--threads", type=count, default=1, help="of the engine (1)")
    p.add_argument("--run", type=Path, required=True, metavar="RUN", help="run folder to make, of its own: runs/PEER")
    return p


def _command(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    if not (args.model / MANIFEST).is_file() or args.model.name != "baseline":
        raise ConfigError(f"{args.model} is not the stage 'baseline' of a run", remedy="give runs/NAME/baseline")
    if args.model.resolve() == (args.run / "baseline").resolve():
        raise ConfigError("--run is the dense network's own run", remedy="give a folder of its own, such as runs/PEER")
    pool, run = calibration_split(args.data), Run(args.run, progress=Terminal())
    sample = pool.subset(calibration_sample(pool, args.images, seed=args.seed), "calibration")
    pruner = Pruner(args.model, sample, Run(args.run / "peer", progress=run.progress), ANY if args.trust else "")
    target = None if args.macs else TargetConfig(name=args.target, threads=args.threads)
    _copy_baseline(args.model, run)
    net = pruner.fitted(args.setting, args.budget, target)
    made = read(net / RECORD, Made, remedy=f"delete the folder {net}")
    run.stage("prune", lambda out, _: _copy(net, out), settings={"peer": asdict(made)}, parents=[args.model])
    run.progress.note(f"go on with: python -m compress finetune --config FILE --set run.dir={args.run}")
    return 0


def _copy_baseline(model: Path, run: Run) -> None:
    """Stage and manifest as they are: its key stays, so that ``baseline`` is up to date there too."""
    folder = run.folder("baseline")
    if folder.exists():
        if tree_sha256(folder) != tree_sha256(model):
            raise ConfigError(f"{folder} is another network than {model}", remedy="give --run a folder of its own")
        return
    half = run.folder(".baseline.copy")
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(model, half)
    half.rename(folder)


def _copy(net: Path, out: Path) -> None:
    for name in ("model.json", "model.safetensors", RECORD):
        shutil.copy2(net / name, out / name)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 error, 2 usage, 5 Torch-Pruning or the engine is absent."""
    return run_command(lambda: _command(argv))


if __name__ == "__main__":
    sys.exit(main())
