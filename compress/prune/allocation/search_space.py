"""A network's widths and blocks as the variables and terms of ``solver``, with their costs and losses."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from compress.errors import ConfigError, ModelError
from compress.graph.groups import Coupling
from compress.graph.segments import Segment
from compress.prune.allocation.constraints import Constraints, removable, widths
from compress.prune.allocation.cost import WidthCost
from compress.prune.allocation.solver import Choice, Problem, Term
from compress.prune.importance.scores import Scores

Array = npt.NDArray[np.float64]
CostKind = Literal["latency", "macs", "params"]

MOST_WIDTHS = 32  # that are considered of a group
MOST_ENTRIES = 400_000  # of the table of a segment's costs


class Latency(Protocol):
    """What is asked of ``compress.prune.latency.predictor.LatencyModel``."""

    @property
    def offset(self) -> float: ...

    @property
    def scale(self) -> float: ...

    def segment_ms(self, segment: str, units: Mapping[str, npt.ArrayLike]) -> Array: ...

    def network_ms(self, units: Mapping[str, int], removed: Collection[str] = ()) -> float: ...

    def candidates(self, group: str) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Losses:
    """What is lost by pruning one thing alone.

    Attributes:
        groups: by group name, numbers of units kept, ascending up to all, and the loss at each; linear in between.
            A group gets no narrower than its first number; one that is not named is not cut.
        removals: by segment name, of taking it out; a segment that is not named stays.
    """

    groups: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]
    removals: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_scores(cls, scores: Scores) -> Losses:
        """Of scores that add up: the sum of the lowest ones.

        >>> Losses.of_scores({"conv": np.array([3.0, 1.0, 2.0])}).groups["conv"]
        (array([1, 2, 3]), array([3., 1., 0.]))
        """
        groups: dict[str, tuple[npt.ArrayLike, npt.ArrayLike]] = {}
        for name, values in scores.items():
            rising = np.concatenate([[0.0], np.cumsum(np.sort(values))])
            groups[name] = np.arange(1, len(values) + 1), rising[-2::-1]
        return cls(groups)


@dataclass(frozen=True)
class SearchSpace:
    """All that is known about a network but the losses.

    Attributes:
        segments: of the network; see ``blocks.segments``.
        latency: None where the budget is none.
    """

    coupling: Coupling
    segments: tuple[Segment, ...]
    cost: WidthCost
    latency: Latency | None = None
    constraints: Constraints = field(default_factory=Constraints)

    @property
    def full(self) -> dict[str, int]:
        """All units, by group name."""
        return {group.name: group.units for group in self.coupling}

    def total(self, kind: CostKind, units: Mapping[str, int], removed: Collection[str] = ()) -> float:
        """The cost of a whole network."""
        if kind == "latency":
            return self._model.network_ms(units, removed)
        gone = [segment for segment in self.segments if segment.name in removed]
        cost = self.cost.of(np.array([units[group.name] for group in self.coupling], dtype=np.float64), gone)
        return float(cost.macs if kind == "macs" else cost.params)

    def offset(self, kind: CostKind) -> float:
        """The share of the cost that is no segment's."""
        if kind == "latency":
            return self._model.offset
        full = self.total(kind, self.full)
        return full - sum(float(self.segment_cost(kind, segment, self.full)) for segment in self.segments)

    def segment_cost(self, kind: CostKind, segment: Segment, units: Mapping[str, npt.ArrayLike]) -> Array:
        """The cost of a segment; ``units`` of its groups are arrays that broadcast."""
        if kind == "latency":
            return self._model.scale * self._model.segment_ms(segment.name, {g: units[g] for g in segment.groups})
        macs, params = self.cost.segment(segment, units)
        return macs if kind == "macs" else params

    @property
    def _model(self) -> Latency:
        if self.latency is None:
            raise ConfigError(
                "pruning to a latency needs a measured latency table",
                remedy="measure one with `python -m benchmarks.latency_table --config FILE`, or set prune.macs",
            )
        return self.latency

    @cached_property
    def _useful(self) -> dict[str, frozenset[int]]:
        """Numbers of units that no wider one makes pointless, by group name."""
        if self.latency is None:
            return {name: frozenset(range(1, units + 1)) for name, units in self.full.items()}
        return {name: frozenset(self.latency.candidates(name)) for name in self.full}

    def problem(self, kinds: Sequence[CostKind], losses: Losses) -> Formulation:
        """Widths and removals as variables and terms.

        Raises:
            ConfigError: a keep pattern matches no layer and no segment; or there is no latency model.
            ModelError: a loss is not finite.
        """
        pieces = self.segments if "latency" in kinds else tuple(p for s in self.segments for p in self._split(s))
        candidates = self._candidates(pieces, losses)
        index = {name: variable for variable, name in enumerate(candidates)}
        may_go = removable(self.coupling, self.constraints, self.segments) & losses.removals.keys()
        terms = []
        for piece in pieces:
            axes = np.ix_(*(candidates[name] for name in piece.groups))
            units = dict(zip(piece.groups, axes, strict=True))
            shape = tuple(len(candidates[name]) for name in piece.groups)
            costs = np.stack([np.broadcast_to(self.segment_cost(kind, piece, units), shape) for kind in kinds])
            removal = losses.removals[piece.name] if piece.name in may_go else None
            terms.append(Term(tuple(index[name] for name in piece.groups), costs, removal))
        tables = []
        for name, counts in candidates.items():
            at, loss = (np.asarray(part, dtype=np.float64) for part in losses.groups.get(name, ([1], [0])))
            tables.append(np.interp(np.array(counts, dtype=np.float64), at, loss))
            if not np.isfinite(tables[-1]).all():
                raise ModelError(f"the loss by the width of '{name}' is not finite", remedy="check the weights for NaN")
        offsets = np.array([self.offset(kind) for kind in kinds])
        return Formulation(Problem(tuple(tables), tuple(terms)), tuple(kinds), offsets, candidates, pieces)

    def _candidates(self, pieces: Sequence[Segment], losses: Losses) -> dict[str, list[int]]:
        """Numbers of units by group: allowed, not dominated, within the curve, and so few that tables stay small."""
        most = dict.fromkeys(self.full, MOST_WIDTHS)
        for piece in pieces:
            for name in piece.groups:
                most[name] = min(most[name], int(MOST_ENTRIES ** (1 / len(piece.groups))))
        result = {}
        for group, allowed in zip(self.coupling, widths(self.coupling, self.constraints, self.segments), strict=True):
            first = np.min(losses.groups[group.name][0]) if group.name in losses.groups else group.units
            useful = self._useful[group.name]
            counts = [n for n in allowed if n == group.units or (n >= first and n in useful)]
            spread = np.linspace(0, len(counts) - 1, min(len(counts), max(2, most[group.name])))
            result[group.name] = [counts[i] for i in spread.round().astype(int)]
        return result

    def _split(self, segment: Segment) -> list[Segment]:
        """A long chain layer by layer, as MACs and parameters are sums over layers."""
        if segment.removable or len(segment.groups) <= 4:
            return [segment]
        sides = {g.name: {slot.layer for slot in (*g.writers, *g.readers, *g.norms)} for g in self.coupling}
        return [
            Segment(layer, (layer,), tuple(n for n in segment.groups if layer in sides[n]), "", "", False)
            for layer in segment.layers
        ]


@dataclass(frozen=True)
class Formulation:
    """A problem in numbers, and what they stand for.

    Attributes:
        kinds: the resources.
        offsets: (resources,) what no term costs.
        candidates: numbers of units by group, in the order of the variables.
        pieces: in the order of the terms.
    """

    problem: Problem
    kinds: tuple[CostKind, ...]
    offsets: Array
    candidates: Mapping[str, Sequence[int]]
    pieces: tuple[Segment, ...]

    def only(self, kinds: Sequence[CostKind]) -> Formulation:
        """The same with some of the resources."""
        rows = [self.kinds.index(kind) for kind in kinds]
        terms = (replace(term, costs=term.costs[rows]) for term in self.problem.terms)
        return replace(
            self, problem=Problem(self.problem.losses, tuple(terms)), kinds=tuple(kinds), offsets=self.offsets[rows]
        )

    def cost(self, choice: Choice) -> Array:
        """Of the whole network, (resources,)."""
        return self.problem.cost(choice) + self.offsets

    def read(self, choice: Choice) -> tuple[dict[str, int], tuple[str, ...]]:
        """Units by group name, and the names of the segments that go."""
        named = zip(self.candidates.items(), choice.candidates, strict=True)
        removed = tuple(piece.name for index, piece in enumerate(self.pieces) if index in choice.removed)
        return {name: counts[index] for (name, counts), index in named}, removed
