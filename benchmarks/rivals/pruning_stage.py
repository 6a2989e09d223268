"""``python -m benchmarks.rivals.pruning_stage --model DIR --data TRAIN --setting NAME --budget S --run RUN``.

Make a run whose stage ``prune`` is Torch-Pruning's network and whose ``baseline`` is the dense network.
``python -m compress finetune``, ``quantize`` and ``export`` with ``--set run.dir=RUN`` then continue as with ours.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from benchmarks.cli import Count, Folder, Images, Seed, Share, Target, TrustFactory, run
from benchmarks.evaluation.images import calibration_split
from benchmarks.rivals.pruning import Chosen
from benchmarks.rivals.pruning_peer import RECORD, Made, Pruner
from calibration.sampler import calibration_sample
from compress.commands import command_line
from compress.config import TargetConfig
from compress.errors import ConfigError
from compress.files import MANIFEST, tree_sha256
from compress.models.model import ANY
from compress.parse import read
from compress.progress import Terminal
from compress.run import Run


def pruning_stage(
    *,
    model: Folder,
    data: Images,
    setting: Chosen,
    budget: Share,
    directory: Annotated[Path, Parameter(name="--run", metavar="RUN")],
    macs: bool = False,
    images: Count = 300,
    seed: Seed = 0,
    target: Target = "ort-x86",
    threads: Count = 1,
    trust: TrustFactory = False,
) -> int:
    """Make a run whose stage prune is a network that Torch-Pruning pruned.

    The run's baseline is the dense network. Finetune, quantize and export with --set run.dir=RUN then continue as with
    our own pruned network.

    Exit code: 0, 1 error, 2 usage, 5 Torch-Pruning or the engine is absent.

    Args:
        model: Dense network: runs/NAME/baseline.
        setting: Setting of Torch-Pruning: SCOPE-CRITERION-MULTIPLE.
        budget: Share of the dense INT8 engine's latency, such as 0.5.
        directory: Folder of the new run, such as runs/PEER.
        macs: The budget is a share of the MACs.
        images: How many calibration images, class-balanced.
        seed: Which images.
        threads: Of the engine.
    """
    if not (model / MANIFEST).is_file() or model.name != "baseline":
        raise ConfigError(f"{model} is not the stage 'baseline' of a run", remedy="give runs/NAME/baseline")
    if model.resolve() == (directory / "baseline").resolve():
        raise ConfigError("--run is the dense network's own run", remedy="give another folder, such as runs/PEER")
    pool, stages = calibration_split(data), Run(directory, progress=Terminal())
    sample = pool.subset(calibration_sample(pool, images, seed=seed), "calibration")
    pruner = Pruner(model, sample, Run(directory / "peer", progress=stages.progress), ANY if trust else "")
    device = None if macs else TargetConfig(name=target, threads=threads)
    _copy_baseline(model, stages)
    net = pruner.fitted(setting, budget, device)
    made = read(net / RECORD, Made, remedy=f"delete the folder {net}")
    stages.stage("prune", lambda out, _: _copy(net, out), settings={"peer": asdict(made)}, parents=[model])
    stages.progress.note(f"go on with: python -m compress finetune --config FILE --set run.dir={directory}")
    return 0


def _copy_baseline(model: Path, run: Run) -> None:
    """Stage and manifest as they are: its key stays, so that ``baseline`` is up to date there too."""
    folder = run.folder("baseline")
    if folder.exists():
        if tree_sha256(folder) != tree_sha256(model):
            raise ConfigError(f"{folder} is another network than {model}", remedy="give another folder with --run")
        return
    half = run.folder(".baseline.copy")
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(model, half)
    half.rename(folder)


def _copy(net: Path, out: Path) -> None:
    for name in ("model.json", "model.safetensors", RECORD):
        shutil.copy2(net / name, out / name)


app = command_line("python -m benchmarks.rivals.pruning_stage")
app.default(pruning_stage)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``pruning_stage``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
