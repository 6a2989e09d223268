"""``python -m benchmarks.rivals.int8_losses --config FILE``: compare pruning losses of the float and the INT8 network.

Pruning chooses widths by the loss of each cut in the float network. This command makes a sample of the same cuts,
repairs and quantizes them, and measures both losses on the same images.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
from cyclopts import Parameter
from scipy.stats import spearmanr
from torch import Tensor, nn

from benchmarks.cli import Configured, Count, JsonFile, run
from benchmarks.results.rivals import Int8LossesFile, LossCell
from benchmarks.results.tables import emit, show
from compress.commands import command_line
from compress.config import Config
from compress.console import Console
from compress.data import RunImages
from compress.errors import ConfigError, ModelError
from compress.files import to_json
from compress.graph.structure import Structure
from compress.models.model import load_model
from compress.progress import Progress, Terminal
from compress.prune.losses.curves import Curve, divergence
from compress.prune.losses.store import load_losses
from compress.prune.repair.layerwise import repair
from compress.prune.stage import measured_losses, solving_and_judging
from compress.prune.surgery import cut
from compress.quantize.calibrate import calibrate
from compress.run import Run

_FEWEST = 3


def cells(config: Config, run: Run, wanted: int, *, progress: Progress) -> tuple[float, list[LossCell]]:
    """The INT8 loss of the uncut network, and a seeded sample of cells of its losses.

    Raises:
        PipelineError: there is no baseline, or no images; ModelError: it is no classifier.
    """
    folder = run.need("baseline")
    model = load_model(folder, config.model.arch)
    if not model.classes:
        raise ModelError("a backbone has no logits to compare", remedy="give the run of a classifier")
    structure = Structure.of(model.net, model.preprocess.shape)
    images = RunImages(config.data, config.run.seed)
    curves = load_losses(measured_losses(config, run, folder, structure, images), structure).curves
    halves = solving_and_judging(config, images, model, progress)
    judged, solved = halves.judge, halves.solve
    reference = [_outputs(model.net, x) for x in judged]

    def losses(net: nn.Module) -> tuple[float, float]:
        quantized = calibrate(net, solved, config.target.name)
        both = [
            sum(divergence(a, _outputs(each, x), logits=True) for a, x in zip(reference, judged, strict=True))
            for each in (net, quantized.fake())
        ]
        count = sum(map(len, judged))
        return max(0.0, both[0] / count), max(0.0, both[1] / count)  # rounding can make them negative

    found = []
    for group, width in progress.track(_sample(curves, wanted, config.run.seed), "quantizing cells"):
        curve = curves[group]
        kept = {group: curve.kept(width)}
        net = cut(repair(model.net, structure, kept, [], solved), structure.coupling, kept)
        found.append(LossCell(group, curve.units[-1], width, *losses(net.eval())))
    return losses(model.net)[1], found


def _sample(curves: Mapping[str, Curve], wanted: int, seed: int) -> list[tuple[str, int]]:
    """Cells at half the units and more, which is where plans are."""
    every = [
        (name, width) for name, curve in curves.items() for width in curve.units[:-1] if 2 * width >= curve.units[-1]
    ]
    chosen = np.random.default_rng(seed).permutation(len(every))[:wanted]
    return [every[index] for index in sorted(chosen)]


@torch.no_grad()
def _outputs(net: nn.Module, images: Tensor) -> Tensor:
    found: Tensor = net(images)
    return found


def summary(dense: float, found: Sequence[LossCell]) -> str:
    """Rank correlation of the two losses, and what INT8 adds."""
    a, b = np.array([[cell.float_loss, cell.int8_loss] for cell in found]).T
    low, middle, high = np.quantile(b - a, [0.1, 0.5, 0.9])
    return (
        f"{len(found)} cells: Spearman's rank correlation {spearmanr(a, b).statistic:.4f}; INT8 adds {middle:.4f} nats "
        f"[{low:.4f}, {high:.4f}] (median, 10% to 90%), to the uncut network {dense:.4f}; "
        f"float losses from {a.min():.4f} to {a.max():.4f}"
    )


def int8_losses(
    *,
    configured: Configured = Configured(),
    count: Annotated[Count, Parameter(name="--cells")] = 30,
    json: JsonFile = None,
) -> int:
    """Compare the pruning losses of the float network with those of the INT8 network.

    Pruning chooses widths by the loss of each cut in the float network. This command makes a sample of the same cuts,
    repairs and quantizes them, and measures both losses on the same images.

    Exit code: 0, 1 error, 2 usage.

    Args:
        count: Number of cuts.
    """
    if count < _FEWEST:
        raise ConfigError(f"{count} cells have no rank correlation", remedy=f"give --cells {_FEWEST} or more")
    config, progress = configured.load(), Terminal()
    dense, found = cells(config, Run(config.run.dir, progress=progress), count, progress=progress)
    console = Console(stderr=json == "-")
    rows = [[c.group, f"{c.width} of {c.units}", f"{c.float_loss:.4f}", f"{c.int8_loss:.4f}"] for c in found]
    show(console, "loss of one cut, nats an image", ["group", "units kept", "float", "INT8"], rows)
    console.print(summary(dense, found), soft_wrap=True)
    if json is not None:
        emit(to_json(Int8LossesFile(dense=dense, cells=tuple(found)).model_dump(mode="json")) + "\n", json)
    return 0


app = command_line("python -m benchmarks.rivals.int8_losses")
app.default(int8_losses)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``int8_losses``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
