"""Make a latency table from the timings of pieces."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.profiling.kit import Timed
from benchmarks.profiling.survey import Piece, Shape, ladder
from compress.prune.latency.predictor import LatencyModel
from compress.prune.latency.table import Array, LatencyTable, Machine, Member, Row, SegmentKind, WholeRow

_LOW = 0.1  # quantile of a piece's rounds
_NO_GAIN = 0.01  # a narrower width must save more than this share to count


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one piece: a low quantile of its ``n`` rounds' least samples, their minimum and their median;
    and the median of the rounds' medians."""

    ms: float
    lo: float
    hi: float
    median: float
    n: int


def timings(rows: Sequence[Timed]) -> dict[str, Timing]:
    """By piece, from the guest's rows.

    Minima are used, because other work on the machine can only add time. Each row is divided by the reference's time in
    the same rounds, relative to the median of all rows.
    """
    beside = {row.name: _low(row.reference) for row in rows}
    usual = float(np.median(list(beside.values()))) if beside else 1.0
    found = {}
    for row in rows:
        scale = usual / beside[row.name]
        least = np.array([low for low, _ in row.rounds]) * scale
        lo, hi = float(least.min()), float(np.median(least))
        median = float(np.median([median for _, median in row.rounds])) * scale
        found[row.name] = Timing(_low(row.rounds) * scale, lo, hi, median, len(least))
    return found


def _low(rounds: Sequence[Sequence[float]]) -> float:
    return float(np.quantile([least for least, _ in rounds], _LOW))


def with_steps(
    kinds: Sequence[SegmentKind], pieces: Iterable[Piece], times: Mapping[str, Timing], unit: Mapping[str, int]
) -> list[SegmentKind]:
    """The segment types, with the steps that the ladders among ``pieces`` show.

    A step of g is enough if no narrower width on the ladder saves more than 1% of the time of b + g units: T(b + r) >=
    0.99 T(b + g) for all r < g. A single comparison is noisy. The kernels are the same in all layers, so the median
    over all groups whose units have the same number of channels decides. The coarsest such g is the step.

    Args:
        unit: channels per unit, by group.
    """
    at: dict[tuple[str, tuple[int, ...]], float] = {}
    sizes: dict[str, list[int]] = {kind.name: [] for kind in kinds}
    for piece in pieces:
        if piece.role == "segment":
            at[piece.subject, tuple(piece.units.values())] = times[piece.name].ms
            sizes[piece.subject] = [unit[group] for group in piece.units]
    ratios: dict[tuple[int, int, int], list[float]] = defaultdict(list)  # by channels a unit, r and g
    for kind in kinds:
        others = [max(1, units // 2) for units in kind.units]
        for axis, full in enumerate(kind.units):
            base, *rungs = ladder(full)
            ms = {rung - base: at[kind.name, (*others[:axis], rung, *others[axis + 1 :])] for rung in rungs}
            for r, g in itertools.combinations(ms, 2):
                ratios[sizes[kind.name][axis], r, g].append(ms[r] / ms[g])

    def step(size: int) -> int:
        climbed = sorted({g for a_size, _, g in ratios if a_size == size})
        enough = [
            g
            for g in climbed
            if all(np.median(found) >= 1 - _NO_GAIN for (a, _, b), found in ratios.items() if (a, b) == (size, g))
        ]
        return max(enough, default=1)

    return [
        replace(
            kind, step=tuple(min(step(size), full) for size, full in zip(sizes[kind.name], kind.units, strict=True))
        )
        for kind in kinds
    ]


def make_table(
    network: str,
    place: Machine,
    groups: Mapping[str, int],
    kinds: Sequence[SegmentKind],
    members: Sequence[Member],
    pieces: Sequence[Piece],
    times: Mapping[str, Timing],
    *,
    imported: bool,
) -> LatencyTable:
    """The table, with the error of its model in ``summary``.

    A segment's time is that of its piece, minus half of the time of the ends at each side, divided by the copies.
    """
    thin = _Ends([(piece.shapes[0], times[piece.name].ms) for piece in pieces if piece.role == "ends"])
    by_name = {kind.name: kind for kind in kinds}
    rows, wholes = [], []
    for piece in pieces:
        t = times[piece.name]
        if piece.role == "segment":
            off = sum(thin.ms(shape) / 2 for shape in piece.shapes)
            ms, lo, hi = (max((each - off) / piece.copies, 1e-4) for each in (t.ms, t.lo, t.hi))
            units = tuple(piece.units.values())
            assert len(units) == len(by_name[piece.subject].units)
            rows.append(Row(piece.subject, units, ms, lo, hi, t.n))
        elif piece.role == "network":
            wholes.append(WholeRow(dict(piece.units), piece.removed, piece.held_out, t.ms, t.lo, t.hi, t.median, t.n))
    table = LatencyTable(
        network, place, imported, dict(groups), tuple(kinds), tuple(members), tuple(rows), tuple(wholes), {}
    )
    model = LatencyModel(table)
    summary = {
        "offset_ms": model.offset,
        "scale": model.scale,
        "mean_error": model.mean_error,
        "max_error": model.max_error,
        "held_out": len(model.errors),
    }
    return replace(table, summary=summary)


class _Ends:
    """The time of the thin ends around a tensor: for each height and width, a linear function of the channels."""

    def __init__(self, measured: Iterable[tuple[Shape, float]]) -> None:
        points: dict[Shape, list[tuple[int, float]]] = {}
        for (_, channels, *rest), ms in measured:
            points.setdefault(tuple(rest), []).append((channels, ms))
        self._lines: dict[Shape, Array] = {}
        for size, pairs in points.items():
            x, y = np.array(pairs, dtype=np.float64).T
            self._lines[size] = np.polyfit(x, y, deg=min(1, len(pairs) - 1))

    def ms(self, shape: Shape) -> float:
        _, channels, *rest = shape
        return max(0.0, float(np.polyval(self._lines[tuple(rest)], channels)))
