"""Pruning in several rounds: translate between a pruned network and the original network.

Losses of single cuts do not add up when much is cut, so a far budget is reached in several rounds, each scored on the
network that the round before made. A pruned network has other group names: a stream whose last block is removed is
named after another layer, and a group of a removed block no longer exists. Latency tables and plans use the original's
names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy.typing as npt

from compress.config import Budget
from compress.graph.groups import Coupling, Group
from compress.graph.plan import GroupPlan, WidthPlan
from compress.models.cost import Cost
from compress.prune.allocation.search_space import Array, Latency

Position = tuple[str, str]


def schedule(start: float, goal: float, rounds: int) -> list[float]:
    """Limits in a geometric row, t_k = start^(1 - k/K) goal^(k/K) for k = 1..K.

    >>> schedule(100.0, 25.0, 2)
    [50.0, 25.0]
    """
    return [start ** (1 - k / rounds) * goal ** (k / rounds) for k in range(1, rounds + 1)]


def ancestors(original: Coupling, pruned: Coupling) -> dict[str, str]:
    """Map each pruned group to the original group it descends from, by name.

    A pruned group sits in the same layers as its original group, or in fewer if blocks were removed. If several
    original groups fit, the first in the order of execution is taken.
    """
    free = {group.name: _places(group) for group in original}
    found = {}
    for group in pruned:
        mine = _places(group)
        name = max(free, key=lambda other: (mine <= free[other], len(mine & free[other])))
        found[group.name] = name
        del free[name]
    return found


def _places(group: Group) -> set[Position]:
    sides = (("out", group.writers), ("in", group.readers), ("norm", group.norms))
    return {(side, slot.layer) for side, slots in sides for slot in slots}


@dataclass(frozen=True)
class Inherited:
    """The original's latency model, used with the group names of a pruned network; see ``search_space.Latency``.

    Attributes:
        model: of the original.
        names: ``ancestors`` of the pruned network's groups.
        units: how many units of each of the original's groups remain.
        removed: segments that were removed.
    """

    model: Latency
    names: Mapping[str, str]
    units: Mapping[str, int]
    removed: tuple[str, ...]

    @property
    def offset(self) -> float:
        return self.model.offset

    @property
    def scale(self) -> float:
        return self.model.scale

    def segment_ms(self, segment: str, units: Mapping[str, npt.ArrayLike]) -> Array:
        asked = {self.names[group]: value for group, value in units.items()}
        return self.model.segment_ms(segment, {**self.units, **asked})

    def network_ms(self, units: Mapping[str, int], removed: Collection[str] = ()) -> float:
        asked = {self.names[group]: value for group, value in units.items()}
        return self.model.network_ms({**self.units, **asked}, (*self.removed, *removed))

    def candidates(self, group: str) -> tuple[int, ...]:
        name = self.names[group]
        full = self.units[name]
        return (*(units for units in self.model.candidates(name) if units < full), full)


def combined(original: Coupling, before: WidthPlan, names: Mapping[str, str], after: WidthPlan) -> WidthPlan:
    """Combine two consecutive plans into one, in the original's names.

    Args:
        before: the plan that made the network that ``after`` prunes.
        names: ``ancestors`` of that network's groups.
    """
    later = {names[group.name]: group for group in after.groups}
    groups = []
    for group in before.groups:
        new = later.get(group.name)
        kept = tuple(group.kept[unit] for unit in new.kept) if new is not None else ()
        width = len(kept) * original[group.name].unit
        groups.append(GroupPlan(group.name, group.kind, group.before, width, kept))
    latency = None
    if before.latency is not None and after.latency is not None:
        latency = before.latency[0], after.latency[1]
    removed = (*before.removed, *after.removed)
    return WidthPlan(tuple(groups), before.before, after.after, removed, latency)


def untouched(coupling: Coupling, cost: Cost, latency: float | None) -> WidthPlan:
    """The plan that keeps everything."""
    groups = (GroupPlan(g.name, g.kind, g.width, g.width, tuple(range(g.units))) for g in coupling)
    return WidthPlan(tuple(groups), cost, cost, latency=None if latency is None else (latency, latency))


def absolute(budgets: Sequence[Budget], full: Mapping[str, float]) -> dict[str, float]:
    """The limit of each budget, of the original's cost by kind; a ratio is no limit."""
    return {
        b.kind: full[b.kind] * b.fraction if b.fraction is not None else float(b.limit or 0)
        for b in budgets
        if b.kind in full
    }
