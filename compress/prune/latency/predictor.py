"""Predict the latency of a plan on the engine that ships, from a latency table.

    T = a + b * (sum of the segments that stay)

The time of a segment follows from the rows of its segment type; a and b are fitted to whole networks of random widths,
because a segment alone does not cost quite what it costs in a network. The error is measured on other networks.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from compress.prune.latency.table import LatencyTable, Row, SegmentKind, Side, WholeRow

__all__ = ["LatencyModel", "LatencyTable"]

Array = npt.NDArray[np.float64]
Predictor = Callable[[Sequence[Array]], Array]

_GAIN = 0.01  # a wider width that costs at most this share more dominates a narrower one
_MULTIPLES = (1, 2, 4)  # of a kind's steps, at which a kernel may climb again


class LatencyModel:
    """Latency in ms of a network's segments, and of the network as a whole, by units kept.

    Attributes:
        offset, scale: a (ms) and b, such that the prediction is a median.
        typical: how far the median of a network's samples lies above the low quantile that rows are made of, which
            repeats better.
        errors: relative error on each whole network that was held out of the fit, (n,); may be empty.
    """

    def __init__(self, table: LatencyTable) -> None:
        self.table = table
        kinds = {kind.name: kind for kind in table.kinds}
        rows = {name: [row for row in table.rows if row.kind == name] for name in kinds}
        predictors = {name: fit_kind(kind, rows[name]) for name, kind in kinds.items()}
        self._members = {m.name: (m, kinds[m.kind], predictors[m.kind]) for m in table.segments}
        self.typical = float(np.median([n.median / n.ms for n in table.networks] or [1.0]))
        self.offset, self.scale = self._calibrate([n for n in table.networks if not n.held_out])
        self.errors = np.array([self._error(n) for n in table.networks if n.held_out])

    @property
    def mean_error(self) -> float:
        """Mean of the absolute errors; NaN where nothing was held out."""
        return float(np.abs(self.errors).mean()) if len(self.errors) else float("nan")

    @property
    def max_error(self) -> float:
        """Largest absolute error; NaN where nothing was held out."""
        return float(np.abs(self.errors).max()) if len(self.errors) else float("nan")

    def segment_ms(self, segment: str, units: Mapping[str, npt.ArrayLike]) -> Array:
        """Time of one segment, before a and b.

        Args:
            units: units kept by group, arrays that broadcast; a group that is not named keeps all.

        Returns:
            ms, in the shape that the arrays of the segment's groups broadcast to.
        """
        member, kind, predict = self._members[segment]
        kept = [
            np.asarray(units.get(group, full), dtype=np.float64)
            for group, full in zip(member.groups, kind.units, strict=True)
        ]
        shape = np.broadcast_shapes(*(each.shape for each in kept))
        return np.broadcast_to(predict(kept), shape).copy()

    def network_ms(self, units: Mapping[str, int], removed: Collection[str] = ()) -> float:
        """Time of the whole network in ms.

        Args:
            units: units kept by group; a group that is not named keeps all.
            removed: segments that are taken out.
        """
        return self.offset + self.scale * self._sum(units, removed)

    def candidates(self, group: str) -> tuple[int, ...]:
        """Numbers of units worth considering, ascending: no wider one costs as little. All units is always one.

        Held against one another with the other groups at full and at half width; what is dominated in both is left out.
        """
        full = self.table.groups[group]
        members = [m for m, _, _ in self._members.values() if group in m.groups]
        lattice = np.arange(1, full + 1)
        best = np.zeros(full, dtype=bool)
        for share in (1.0, 0.5):
            others = {g: _half(n, share) for g, n in self.table.groups.items()}
            cost = sum((self.segment_ms(m.name, {**others, group: lattice}) for m in members), start=np.zeros(full))
            cheapest_wider = np.minimum.accumulate(np.append(cost[1:], np.inf)[::-1])[::-1]
            best |= cheapest_wider > cost * (1 + _GAIN)
        on_step = np.zeros(full, dtype=bool)
        for member, kind, _ in self._members.values():
            for name, step in zip(member.groups, kind.step, strict=True):
                if name == group:
                    on_step[step - 1 :: step] = True
        return tuple(int(u) for u in lattice if u == full or (best[u - 1] and on_step[u - 1]))

    def _sum(self, units: Mapping[str, int], removed: Collection[str]) -> float:
        return sum(float(self.segment_ms(name, units)) for name in self._members if name not in removed)

    def _calibrate(self, networks: Sequence[WholeRow]) -> tuple[float, float]:
        """a and b with the least squared relative error; 0 and 1 where there is nothing to fit them to."""
        sums = np.array([self._sum(n.units, n.removed) for n in networks])
        measured = np.array([n.ms for n in networks])
        if len(networks) < 3:
            return 0.0, self.typical * float((measured / sums).mean()) if len(networks) else 1.0
        design = np.stack([np.ones_like(sums), sums], axis=1) / measured[:, None]
        (a, b), *_ = np.linalg.lstsq(design, np.ones_like(measured), rcond=None)
        return self.typical * float(a), self.typical * float(b)

    def _error(self, network: WholeRow) -> float:
        return self.network_ms(network.units, network.removed) / (self.typical * network.ms) - 1


def fit_kind(kind: SegmentKind, rows: Sequence[Row]) -> Predictor:
    """Fit a function from the units of each axis (arrays that broadcast) to ms, to the rows of a segment type.

    Nonnegative least squares (Lawson and Hanson 1974) in relative error on what the kernels' work is made of: products
    of input and output widths of each layer, these widths alone, and a constant. Widths are rounded up to the kind's
    steps and to two and four times those, each side for itself, and the fit chooses: a kernel may take its outputs in
    blocks of 16 and its inputs in blocks of 4. It may also be missing for an odd number of steps, and a slower one take
    its place (ResNet-56: a block of 8 channels takes 1.4 times as long as one of 16); so the product of the widths and
    the constant may weigh in once more there. Otherwise, nonnegative weights make the time grow with every width.

    Rows between the kind's steps are left out: no plan has such a width.
    """
    rows = [row for row in rows if kind.on_step(row.units)]
    ms = np.array([row.ms for row in rows])
    terms = list(_terms(kind))
    columns = _columns(
        kind, terms, [np.array(axis, dtype=np.float64) for axis in zip(*(r.units for r in rows), strict=True)]
    )
    design = np.stack([np.broadcast_to(column, ms.shape) for column in columns], axis=1)
    size = np.maximum(design.max(axis=0), 1e-12)
    fitted, _ = nnls(design / size / ms[:, None], np.ones(len(ms)))
    weights = {term: weight for term, weight in zip(terms, fitted / size, strict=True) if weight > 0}

    def predict(units: Sequence[Array]) -> Array:
        parts = (
            weight * column for weight, column in zip(weights.values(), _columns(kind, weights, units), strict=True)
        )
        return sum(parts, start=np.array(0.0))

    return predict


class _Term(NamedTuple):
    """Input times output width of a layer, each rounded up to a multiple of the steps; 0 leaves a side out.

    With ``odd``, a side of the layer, it counts only where the width of that side is an odd number of steps.
    """

    layer: int
    inputs: int
    outputs: int
    odd: Literal["inputs", "outputs"] | None = None


def _terms(kind: SegmentKind) -> Iterator[_Term]:
    yield _Term(0, 0, 0)
    for layer in range(len(kind.layers)):
        for inputs, outputs in itertools.product((0, *_MULTIPLES), repeat=2):
            if inputs or outputs:
                yield _Term(layer, inputs, outputs)
        for width in (0, 1):
            yield _Term(layer, width, width, "inputs")
            yield _Term(layer, width, width, "outputs")


def _columns(kind: SegmentKind, terms: Iterable[_Term], units: Sequence[Array]) -> Iterator[Array]:
    """The value of each term."""
    rounded = {0: list(units)}
    for m in _MULTIPLES:
        steps = zip(units, kind.step, kind.units, strict=True)
        rounded[m] = [np.minimum(np.ceil(each / (step * m)) * step * m, full) for each, step, full in steps]
    for term in terms:
        value = np.array(1.0)
        if term.inputs:
            value = value * kind.layers[term.layer].inputs(rounded[term.inputs])
        if term.outputs:
            value = value * kind.layers[term.layer].outputs(rounded[term.outputs])
        if term.odd:
            layer = kind.layers[term.layer]
            side = layer.inputs if term.odd == "inputs" else layer.outputs
            value = value * _odd(side, kind.step, units)
        yield value


def _odd(side: Side, steps: Sequence[int], units: Sequence[Array]) -> Array:
    """1 where any axis that makes up the side has an odd number of steps, up to the end of the last; else 0."""
    axes = zip(units, steps, side.per_unit, strict=True)
    odd = (np.ceil(each / step) % 2 != 0 for each, step, count in axes if count)
    return functools.reduce(np.logical_or, odd, np.array(False)).astype(np.float64)


def _half(units: int, share: float) -> int:
    return max(1, round(units * share))
