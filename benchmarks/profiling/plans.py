"""Measure the latency of plans without pruning any weights."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.profiling import kit
from benchmarks.profiling.kit import Effort
from benchmarks.profiling.pieces import for_this_gpu, write_pieces
from benchmarks.profiling.survey import Piece, Survey
from benchmarks.results.base import Bounds
from benchmarks.statistics.intervals import Rounds, ratio_interval
from compress.config import TargetConfig
from compress.graph.plan import WidthPlan

EFFORT = Effort(rounds=32, round_s=0.03)
DENSE = Piece("dense", "network", "", {})


def ratios(
    survey: Survey,
    plans: Sequence[WidthPlan],
    target: TargetConfig,
    effort: Effort = EFFORT,
    *,
    against: Survey | None = None,
) -> list[Bounds]:
    """Latency of each plan's network over the unpruned one's, with 95% intervals.

    Args:
        against: of the unpruned network that they are compared with; default: of the plans' own.

    Raises:
        EngineError: the engine cannot run a plan's network.
    """
    pieces = [piece_of(f"plan{index}", plan) for index, plan in enumerate(plans)]
    dense = against or survey
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = for_this_gpu(target)
        write_pieces(folder, [DENSE], dense.build, target)
        write_pieces(folder, pieces, survey.build, target)
        kit.write_manifest(folder, kit.GuestManifest.of(target, [DENSE, *pieces], survey.weights, effort))
        for _ in kit.run_guest(folder):
            pass
        rows = {row.name: row for row in kit.results(folder)}
    found = []
    for piece in pieces:
        row = rows[piece.name]
        ratio = ratio_interval(_medians(row.rounds), _medians(row.reference))
        found.append(Bounds(value=ratio.value, lo=ratio.low, hi=ratio.high))
    return found


def piece_of(name: str, plan: WidthPlan) -> Piece:
    """A network with the widths of a plan; it keeps the first units of each group, whichever the plan keeps."""
    return Piece(name, "network", "", {name: len(kept) for name, kept in plan.kept.items()}, removed=plan.removed)


def _medians(rounds: Sequence[Sequence[float]]) -> Rounds:
    return [np.array([median]) for _, median in rounds]
