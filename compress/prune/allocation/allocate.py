"""Choose how many units each group keeps and which blocks are removed, for the least loss within the budget."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from compress.config import Budget
from compress.errors import BudgetError
from compress.graph.plan import GroupPlan, WidthPlan
from compress.parse import Finite, NonNegative
from compress.prune.allocation.constraints import Constraints, kept_groups, widths
from compress.prune.allocation.search_space import Array, CostKind, Formulation, Losses, SearchSpace
from compress.prune.allocation.solver import Choice, Solution, least, solve
from compress.prune.importance.scores import Scores

__all__ = ["Constraints", "Front", "FrontFile", "Losses", "SearchSpace", "allocate", "by_scores", "front"]

Keep = Callable[[str, int], Sequence[int]]
"""Which units of a group stay, by its name and their number."""

RESOLUTION = {1: 4000, 2: 200, 3: 24}
"""Steps of the grid on each resource, by the number of resources."""

_WORTH_SAYING = 0.005  # of the unpruned network's cost: a hint that gains less is left out


@dataclass(frozen=True)
class FrontFile:
    """What ``front.json`` holds: the least loss at each cost; see ``Front.points``."""

    kind: CostKind
    full: Finite
    cost: tuple[Finite, ...]
    loss: tuple[NonNegative, ...]

    def __post_init__(self) -> None:
        if not self.cost or len(self.cost) != len(self.loss):
            raise ValueError(f"{len(self.cost)} costs and {len(self.loss)} losses")


@dataclass(frozen=True)
class Front:
    """The least loss at every budget of one kind.

    Attributes:
        kind: of the budget.
        full: what the unpruned network costs.
        losses: for what it was made.
    """

    space: SearchSpace
    kind: CostKind
    full: float
    losses: Losses
    formulation: Formulation
    solution: Solution

    def points(self) -> tuple[Array, Array]:
        """Costs, ascending, and the least loss at each, falling; to within a few steps of the grid."""
        losses = self.solution.losses.astype(np.float64)
        better = np.isfinite(losses) & (losses < np.append(np.inf, losses[:-1]))
        return np.flatnonzero(better) * self.solution.step[0] + self.formulation.offsets[0], losses[better]

    def to_json(self) -> dict[str, Any]:
        """As ``front.json`` holds it; see ``FrontFile``."""
        costs, losses = self.points()
        return asdict(FrontFile(self.kind, self.full, tuple(costs.tolist()), tuple(losses.tolist())))

    def plan(self, limit: float, keep: Keep) -> WidthPlan:
        """The plan of least loss that costs ``limit`` at most; all stays where that is more than the network costs.

        Raises:
            BudgetError: there is none; the message says what can be reached.
        """
        limit = min(limit, self.full)  # the grid ends there
        _check_reachable(self.space, self.losses, self.formulation, np.array([limit]))
        choice = _best(self.formulation, self.solution, np.array([limit]))
        return _plan(self.space, *self.formulation.read(choice), keep)


def front(space: SearchSpace, losses: Losses, kind: CostKind) -> Front:
    """Solve for every budget of a kind at once.

    Raises:
        ConfigError: a keep pattern matches no layer and no segment.
    """
    formulation = space.problem([kind], losses)
    full = space.total(kind, space.full)
    solution = solve(formulation.problem, full - formulation.offsets, RESOLUTION[1])
    return Front(space, kind, full, losses, formulation, solution)


def allocate(
    space: SearchSpace, losses: Losses, budget: Budget, keep: Keep, caps: Mapping[CostKind, float] | None = None
) -> WidthPlan:
    """The plan of least loss within a budget.

    Args:
        caps: absolute limits on other resources than the budget's. Each limit is tried alone first, on the finest
            grid, then in pairs: the best plan under some limits that obeys all of them is the best under all.

    Raises:
        BudgetError: no plan meets the budget; says the least that can be reached and what stands in the way.
        ConfigError: a keep pattern matches no layer and no segment.
    """
    if budget.kind == "ratio":
        return _plan(space, _uniform(space, budget), (), keep)
    limits: dict[CostKind, float] = {budget.kind: _limit(budget, space.total(budget.kind, space.full))}
    limits |= {kind: cap for kind, cap in (caps or {}).items() if kind not in limits}
    formulation_of_all = space.problem(list(limits), losses)
    for count in range(1, len(limits) + 1):
        for kinds in itertools.combinations(limits, count):
            formulation = formulation_of_all.only(kinds)
            bounds = np.array([limits[kind] for kind in kinds])
            _check_reachable(space, losses, formulation, bounds)
            solution = solve(formulation.problem, bounds - formulation.offsets, RESOLUTION[count])
            units, removed = formulation.read(_best(formulation, solution, bounds))
            if all(space.total(kind, units, removed) <= limit * (1 + 1e-9) for kind, limit in limits.items()):
                return _plan(space, units, removed, keep)
    raise AssertionError("the last combination has all limits")


def check_reachable(space: SearchSpace, losses: Losses, budgets: Sequence[Budget]) -> None:
    """Refuse budgets that cannot be met even alone; this is cheap, as no loss is minimised.

    Raises:
        BudgetError, ConfigError: see ``allocate``.
    """
    for budget in budgets:
        if budget.kind == "ratio":
            _uniform(space, budget)
        else:
            limit = _limit(budget, space.total(budget.kind, space.full))
            _check_reachable(space, losses, space.problem([budget.kind], losses), np.array([limit]))


def by_scores(scores: Scores) -> Keep:
    """Keep the units with the highest scores."""
    return lambda group, count: np.argsort(-scores[group], kind="stable")[:count].tolist()


def _plan(space: SearchSpace, units: Mapping[str, int], removed: Sequence[str], keep: Keep) -> WidthPlan:
    gone = [segment for segment in space.segments if segment.name in removed]
    left = {name for segment in space.segments if segment not in gone for name in segment.groups}
    groups = []
    for group in space.coupling:
        kept = tuple(sorted(keep(group.name, units[group.name]))) if group.name in left else ()
        groups.append(GroupPlan(group.name, group.kind, group.width, len(kept) * group.unit, kept))
    counts = np.array([units[group.name] for group in space.coupling], dtype=np.float64)
    latency = None
    if space.latency is not None:
        latency = space.latency.network_ms(space.full), space.latency.network_ms(units, removed)
    return WidthPlan(
        tuple(groups), space.cost.of(space.cost.full), space.cost.of(counts, gone), tuple(removed), latency
    )


def _best(formulation: Formulation, solution: Solution, bounds: Array) -> Choice:
    choice = solution.best(bounds - formulation.offsets)
    if choice is None:
        asked = " and ".join(_figure(kind, bound) for kind, bound in zip(formulation.kinds, bounds, strict=True))
        raise BudgetError(f"{asked} can each be met, but not together", remedy="ask for less of either")
    return choice


def _check_reachable(space: SearchSpace, losses: Losses, formulation: Formulation, bounds: Array) -> None:
    """Refuse a limit that cannot be met; report the least reachable cost, and what relaxing constraints gives."""
    for resource, (kind, bound) in enumerate(zip(formulation.kinds, bounds, strict=True)):
        lowest = float(formulation.cost(least(formulation.problem, resource))[resource])
        if lowest <= bound + 1e-12 * abs(bound):
            continue
        full = space.total(kind, space.full)
        helps = []
        for what, constraints in space.constraints.relaxed().items():
            other = replace(space, constraints=constraints).problem([kind], losses)
            figure = float(other.cost(least(other.problem, 0))[0])
            if figure < lowest - _WORTH_SAYING * full:
                helps.append(f"{what} reaches {figure / full:.1%}")
        stuck = "; ".join(f"'{layer}': {reason}" for layer, reason in space.coupling.frozen.items())
        offset = float(formulation.offsets[resource])
        fixed = f", {_figure(kind, offset)} outside all layers" if offset > 0 else ""
        raise BudgetError(
            f"a budget of {_figure(kind, bound)} ({bound / full:.1%}) cannot be met: the least reachable is "
            f"{_figure(kind, lowest)} ({lowest / full:.1%}), limited by {space.constraints}{fixed} and fixed layers "
            f"({stuck or 'none'})",
            remedy="; ".join(helps) or "ask for less",
        )


def _figure(kind: CostKind, value: float) -> str:
    return f"{value:.3f} ms" if kind == "latency" else f"{value:,.0f} {kind}"


def _limit(budget: Budget, full: float) -> float:
    return full * budget.fraction if budget.fraction is not None else budget.limit or 0.0


def _uniform(space: SearchSpace, budget: Budget) -> dict[str, int]:
    """The widest allowed assignment in which every group that may be cut keeps at most the asked share."""
    share, constraints = budget.fraction or 0.0, space.constraints
    kept = kept_groups(space.coupling, constraints, space.segments)
    units = {}
    for group, counts in zip(space.coupling, widths(space.coupling, constraints, space.segments), strict=True):
        fitting = [count for count in counts if group.name in kept or count <= share * group.units + 1e-9]
        if not fitting:
            raise BudgetError(
                f"a ratio of {share:.1%} leaves '{group.name}' {share * group.width:g} of {group.width} channels; the "
                f"least with {constraints} is {counts[0] * group.unit} ({counts[0] / group.units:.1%})",
                remedy=f"lower prune.multiple or prune.min_width, or add '{group.name}' to prune.keep",
            )
        units[group.name] = fitting[-1]
    return units
