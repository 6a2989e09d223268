"""How many units each group keeps, so that the budget is met at the least loss."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from compress.config import Budget
from compress.errors import BudgetError, ConfigError
from compress.prune.coupling import Coupling, Group
from compress.prune.importance import Scores
from compress.prune.plan import GroupPlan, WidthPlan
from compress.prune.width_cost import WidthCost

Units = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Constraints:
    """What a plan must respect besides the budget.

    Attributes:
        multiple: a group that gets narrower ends at a multiple of this many channels.
        min_width: and at no fewer than this many; a group that starts narrower can only stay whole.
        keep: layers whose output channels all stay; names or patterns such as ``layer1.*``.
    """

    multiple: int = 1
    min_width: int = 1
    keep: tuple[str, ...] = ()


def allocate(
    coupling: Coupling, scores: Scores, cost: WidthCost, budget: Budget, constraints: Constraints = Constraints()
) -> WidthPlan:
    """Choose the width of every group, and within a group the units with the highest scores.

    Raises:
        BudgetError: no assignment meets the budget; says the least that can be reached and what stands in the way.
        ConfigError: a keep pattern matches no layer, or the budget is a latency.
    """
    if budget.kind == "latency":
        raise ConfigError(
            "pruning to a latency needs a measured latency table, which this version does not make",
            remedy="give the budget as prune.macs, prune.params or prune.ratio",
        )
    choices = widths(coupling, constraints)
    if budget.kind == "ratio":
        units = _uniform(coupling, choices, constraints, budget)
    else:
        units = _greedy(coupling, choices, scores, _Meter(cost, coupling, constraints, budget))
    groups = []
    for group, count in zip(coupling, units.astype(int).tolist(), strict=True):
        best = np.argsort(-scores[group.name], kind="stable")[:count]
        kept = tuple(sorted(best.tolist()))
        groups.append(GroupPlan(group.name, group.kind, group.width, count * group.unit, kept))
    return WidthPlan(tuple(groups), cost.of(cost.full), cost.of(units))


def widths(coupling: Coupling, constraints: Constraints) -> list[list[int]]:
    """The numbers of units that each group may keep, ascending; all of them is always one.

    Raises:
        ConfigError: a keep pattern matches no layer.
    """
    kept = _kept_groups(coupling, constraints.keep)

    def allowed(group: Group, units: int) -> bool:
        width = units * group.unit
        return units == group.units or (width >= constraints.min_width and width % constraints.multiple == 0)

    def choices(group: Group) -> list[int]:
        if group.name in kept:
            return [group.units]
        return [units for units in range(1, group.units + 1) if allowed(group, units)]

    return [choices(group) for group in coupling]


def _kept_groups(coupling: Coupling, patterns: Sequence[str]) -> set[str]:
    """Names of the groups that a kept layer writes or normalises."""
    layers: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(coupling.layers, pattern)
        if not matches:
            inside = any(layer.startswith(f"{pattern}.") for layer in coupling.layers)
            close = [f"{pattern}.*"] if inside else difflib.get_close_matches(pattern, coupling.layers, n=1, cutoff=0.5)
            raise ConfigError(
                f"prune.keep: no layer is called '{pattern}'",
                remedy=f"did you mean '{close[0]}'?" if close else f"layers: {', '.join(coupling.layers)}",
            )
        layers.update(matches)
    return {group.name for group in coupling if any(s.layer in layers for s in (*group.writers, *group.norms))}


@dataclass(frozen=True)
class _Meter:
    """The budgeted quantity."""

    cost: WidthCost
    coupling: Coupling
    constraints: Constraints
    budget: Budget

    def of(self, assignments: Units) -> npt.NDArray[np.float64]:
        """(B, groups) -> (B,)."""
        macs, params = self.cost.batch(assignments)
        return np.rint(macs if self.budget.kind == "macs" else params)

    @property
    def full(self) -> float:
        return float(self.of(self.cost.full[None])[0])

    @property
    def limit(self) -> float:
        budget = self.budget
        return self.full * budget.fraction if budget.fraction is not None else budget.limit or 0.0

    def least(self, constraints: Constraints) -> float:
        lowest = np.array([choice[0] for choice in widths(self.coupling, constraints)], dtype=np.float64)
        return float(self.of(lowest[None])[0])

    def unreachable(self) -> BudgetError:
        """Says the least that can be reached, and what could be relaxed to reach less."""
        now = self.constraints
        least = self.least(now)
        relaxed = {
            "prune.keep=[]": replace(now, keep=()),
            f"prune.min_width={now.multiple}": replace(now, min_width=min(now.multiple, now.min_width)),
            "prune.multiple=1": replace(now, multiple=1),
            "prune.multiple=1 and prune.min_width=1": replace(now, multiple=1, min_width=1),
        }
        helps = {what: figure for what, other in relaxed.items() if (figure := self.least(other)) < least}
        listed = "; ".join(f"{what} reaches {figure / self.full:.1%}" for what, figure in helps.items())
        stuck = "; ".join(f"'{layer}': {reason}" for layer, reason in self.coupling.frozen.items())
        return BudgetError(
            f"a budget of {self.limit:,.0f} {self.budget.kind} ({self.limit / self.full:.1%}) cannot be met: the least "
            f"reachable is {least:,.0f} ({least / self.full:.1%}), limited by prune.multiple={now.multiple}, "
            f"prune.min_width={now.min_width}, prune.keep={list(now.keep)} and fixed layers ({stuck or 'none'})",
            remedy=listed or "ask for less",
        )


def _uniform(coupling: Coupling, choices: list[list[int]], constraints: Constraints, budget: Budget) -> Units:
    """The widest allowed assignment in which every group that may be cut keeps at most the asked share."""
    share = budget.fraction or 0.0
    kept = _kept_groups(coupling, constraints.keep)
    units = []
    for group, counts in zip(coupling, choices, strict=True):
        fitting = counts if group.name in kept else [count for count in counts if count <= share * group.units + 1e-9]
        if not fitting:
            raise BudgetError(
                f"a ratio of {share:.1%} leaves '{group.name}' {share * group.width:g} of {group.width} channels; the "
                f"least with prune.multiple={constraints.multiple} and prune.min_width={constraints.min_width} is "
                f"{counts[0] * group.unit} ({counts[0] / group.units:.1%})",
                remedy=f"lower prune.multiple or prune.min_width, or add '{group.name}' to prune.keep",
            )
        units.append(fitting[-1])
    return np.array(units, dtype=np.float64)


def _greedy(coupling: Coupling, choices: list[list[int]], scores: Scores, meter: _Meter) -> Units:
    """Step by step to the next width of the group that loses the least score per cost saved, until the budget is met.

    Where that step would be the last, it is the one that loses the least among all that suffice. A last step may still
    save more than was asked, so whatever fits is widened again, dearest loss first.
    """
    if meter.least(meter.constraints) > meter.limit:
        raise meter.unreachable()
    lost = []  # by group and choice: the sum of the scores that go, the lowest first
    for group, counts in zip(coupling, choices, strict=True):
        rising = np.concatenate([[0.0], np.cumsum(np.sort(scores[group.name]))])
        lost.append([float(rising[group.units - count]) for count in counts])
    at = [len(counts) - 1 for counts in choices]

    def units(step: int, moves: Sequence[int]) -> Units:
        now = np.array([counts[index] for counts, index in zip(choices, at, strict=True)], dtype=np.float64)
        table = np.tile(now, (len(moves) + 1, 1))  # the last row is the assignment as it is
        for row, g in enumerate(moves):
            table[row, g] = choices[g][at[g] + step]
        return table

    while True:
        moves = [g for g, index in enumerate(at) if index > 0]
        *costs, now = meter.of(units(-1, moves))
        if now <= meter.limit:
            break
        losses = [lost[g][at[g] - 1] - lost[g][at[g]] for g in moves]
        rates = [loss / (now - cost) if cost < now else np.inf for loss, cost in zip(losses, costs, strict=True)]
        best = int(np.argmin(rates))
        if costs[best] <= meter.limit:
            best = min((m for m, cost in enumerate(costs) if cost <= meter.limit), key=losses.__getitem__)
        at[moves[best]] -= 1
    while True:
        moves = [g for g, index in enumerate(at) if index + 1 < len(choices[g])]
        *costs, _ = meter.of(units(+1, moves))
        gains = {g: lost[g][at[g]] - lost[g][at[g] + 1] for g, c in zip(moves, costs, strict=True) if c <= meter.limit}
        if not gains:
            break
        at[max(gains, key=lambda g: gains[g])] += 1
    result: Units = units(0, [])[0]
    assert meter.of(result[None])[0] <= meter.limit
    return result
