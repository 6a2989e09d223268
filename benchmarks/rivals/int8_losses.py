"""``python -m benchmarks.rivals.int8_losses --config FILE``: are the losses of the float network those of the INT8 one?

Pruning chooses widths by what each cut does to the float network's outputs. Here a sample of the same cuts is made,
repaired and quantized, and both losses are taken on the same images.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from benchmarks.latency import count as whole_number
from benchmarks.results.tables import emit, show
from compress.commands import run_command
from compress.config import Config, load_config
from compress.console import Console
from compress.errors import ConfigError, ModelError
from compress.graph.structure import Structure
from compress.models.model import load_model
from compress.progress import Progress, Terminal
from compress.prune.losses.curves import Curve, divergence
from compress.prune.losses.store import load_losses, measured_losses, pruning_images, solve_and_judge
from compress.prune.repair.layerwise import repair
from compress.prune.surgery import cut
from compress.quantize.calibrate import calibrate
from compress.run import Run

_FEWEST = 3


@dataclass(frozen=True)
class Cell:
    """One group at one width: mean divergence from the dense float network's outputs, in nats an image."""

    group: str
    units: int
    width: int
    float_loss: float
    int8_loss: float


def cells(config: Config, run: Run, wanted: int, *, progress: Progress) -> tuple[float, list[Cell]]:
    """The INT8 loss of the uncut network, and a seeded sample of cells of its losses.

    Raises:
        PipelineError: there is no baseline, or no images; ModelError: it is no classifier.
    """
    folder = run.need("baseline")
    model = load_model(folder, config.model.arch)
    if not model.classes:
        raise ModelError("a backbone has no logits to compare", remedy="give the run of a classifier")
    structure = Structure.of(model.net, model.preprocess.shape)
    curves = load_losses(measured_losses(config, run, folder, structure), structure).curves
    images = solve_and_judge(pruning_images(config, model, progress))
    judged, solved = images.judge, images.solve
    reference = [_outputs(model.net, x) for x in judged]

    def losses(net: nn.Module) -> tuple[float, float]:
        quantized = calibrate(net, solved, config.target.name)
        both = [
            sum(divergence(a, _outputs(each, x), logits=True) for a, x in zip(reference, judged, strict=True))
            for each in (net, quantized.fake())
        ]
        count = sum(map(len, judged))
        return both[0] / count, both[1] / count

    found = []
    for group, width in progress.track(_sample(curves, wanted, config.run.seed), "quantizing cells"):
        curve = curves[group]
        kept = {group: curve.kept(width)}
        net = cut(repair(model.net, structure, kept, [], solved), structure.coupling, kept)
        found.append(Cell(group, curve.units[-1], width, *losses(net.eval())))
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


def summary(dense: float, found: Sequence[Cell]) -> str:
    """Rank correlation of the two losses, and what INT8 adds."""
    a, b = np.array([[cell.float_loss, cell.int8_loss] for cell in found]).T
    low, middle, high = np.quantile(b - a, [0.1, 0.5, 0.9])
    return (
        f"{len(found)} cells: Spearman's rank correlation {spearmanr(a, b).statistic:.4f}; INT8 adds {middle:.4f} nats "
        f"[{low:.4f}, {high:.4f}] (median, 10% to 90%), to the uncut network {dense:.4f}; "
        f"float losses from {a.min():.4f} to {a.max():.4f}"
    )


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.rivals.int8_losses", description=__doc__)
    p.add_argument("--config", type=Path, metavar="FILE", help="the configuration that the run was made with")
    p.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one key"
    )
    p.add_argument("--cells", type=whole_number, default=30, metavar="N", help="how many cuts (30)")
    p.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write them as JSON; - is stdout")
    return p


def _command(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    if args.cells < _FEWEST:
        raise ConfigError(f"{args.cells} cells have no rank correlation", remedy=f"give --cells {_FEWEST} or more")
    config, progress = load_config(args.config, args.overrides), Terminal()
    dense, found = cells(config, Run(config.run.dir, progress=progress), args.cells, progress=progress)
    console = Console(stderr=args.json == "-")
    rows = [[c.group, f"{c.width} of {c.units}", f"{c.float_loss:.4f}", f"{c.int8_loss:.4f}"] for c in found]
    show(console, "loss of one cut, nats an image", ["group", "units kept", "float", "INT8"], rows)
    console.print(summary(dense, found), soft_wrap=True)
    if args.json is not None:
        emit(json.dumps({"dense": dense, "cells": [dataclasses.asdict(c) for c in found]}, indent=2) + "\n", args.json)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 error, 2 usage."""
    return run_command(lambda: _command(argv))


if __name__ == "__main__":
    sys.exit(main())
