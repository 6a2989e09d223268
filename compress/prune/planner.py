"""The start of a pruning round: the unpruned network, the budgets, and the network that the round prunes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import nn

from compress.config import Budget, PruneConfig, TargetConfig
from compress.errors import ConfigError, PipelineError
from compress.graph.plan import WidthPlan
from compress.graph.structure import Structure
from compress.models.model import Model, load_model
from compress.prune.allocation.allocate import (
    Front,
    Keep,
    Losses,
    SearchSpace,
    allocate,
    by_scores,
    check_reachable,
    front,
)
from compress.prune.allocation.constraints import Constraints
from compress.prune.allocation.cost import WidthCost
from compress.prune.importance.scores import Scores
from compress.prune.iterative import Inherited, absolute, ancestors, schedule, untouched
from compress.prune.latency.machine import here
from compress.prune.latency.predictor import LatencyModel
from compress.prune.latency.table import LatencyTable, fingerprint
from compress.prune.losses.curves import Curve
from compress.prune.losses.store import Measured

TABLE = "latency_table.json"


@dataclass(frozen=True)
class Origin:
    """The unpruned network, and the budgets of the pruned one.

    Attributes:
        table: the file that ``latency`` is from.
        measurable: whether that was measured on this machine's engine, so that plans can be too.
        reference: the network whose latency budgets are shares of, where that is another one: its folder, and its
            latency in ms by its own table.
    """

    folder: Path
    net: nn.Module
    structure: Structure
    cost: WidthCost
    latency: LatencyModel | None
    table: Path | None
    measurable: bool
    budgets: tuple[Budget, ...]
    constraints: Constraints
    reference: tuple[Path, float] | None = None

    @classmethod
    def of(
        cls,
        folder: Path,
        arch: str,
        settings: PruneConfig,
        target: TargetConfig,
        own_table: Path,
        reference: tuple[Path, float] | None = None,
    ) -> Origin:
        """Read the unpruned network, and the latency table where one is needed.

        Args:
            folder: of the stage ``baseline``.
            arch: the network's factory, as the user names it.
            own_table: where the table is, unless the settings name another.
            reference: see the attribute.

        Raises:
            ConfigError: the table is absent, or of another network, target or machine.
            ModelError: see ``Structure.of``.
        """
        model = load_model(folder, arch)
        shape = model.preprocess.shape
        structure = Structure.of(model.net, shape)
        budgets = settings.budgets()
        by_latency = any(budget.kind == "latency" for budget in budgets)
        latency, table, measurable = None, None, False
        if by_latency or settings.table is not None:
            table = settings.table or own_table
            measured = LatencyTable.read(table)
            place, allowed = here(target), settings.allow_foreign_table
            measured.check(
                fingerprint(model.net, shape), target, place, foreign=allowed, name=f"the latency table {table}"
            )
            measurable = measured.place == place
            pieces = {(segment.name, segment.groups) for segment in structure.segments}
            groups = {group.name: group.units for group in structure.coupling}
            if {(member.name, member.groups) for member in measured.segments} != pieces or measured.groups != groups:
                raise ConfigError(
                    f"{table} divides the network into other segments than this version does",
                    remedy="measure it again with `python -m benchmarks.latency_table --config FILE`",
                )
            latency = LatencyModel(measured)
            if not latency.scale > 0:
                raise ConfigError(
                    f"{table} is inconsistent: whole networks do not take longer when their segments do",
                    remedy="measure it again on a quiet machine: `python -m benchmarks.latency_table --config FILE`",
                )
        multiple = settings.multiple or (8 if latency is None else 1)
        constraints = Constraints(multiple, settings.min_width, settings.keep, settings.max_ratio, settings.depth)
        cost = WidthCost(model.net, structure.coupling, shape)
        found = cls(folder, model.net, structure, cost, latency, table, measurable, budgets, constraints)
        return replace(found, reference=reference)

    def plan(self) -> WidthPlan:
        """The plan that keeps everything."""
        whole = self.cost.of(self.cost.full)
        return untouched(self.structure.coupling, whole, self.latency.network_ms({}) if self.latency else None)

    def read(self, path: Path) -> WidthPlan:
        """The plan that has led from the unpruned network to a pruned one.

        Raises:
            PipelineError: it is absent or damaged, or begins with another network.
        """
        plan, blocks = WidthPlan.read(path), {segment.name for segment in self.structure.segments}
        if not plan.begins_with(self.structure.coupling) or not blocks.issuperset(plan.removed):
            raise PipelineError(
                f"{path} is the plan of another network than {self.folder}", remedy="run stage prune again with --force"
            )
        return plan

    def absolute(self) -> dict[str, float]:
        """The limit of each budget, of what the unpruned network costs, by its kind."""
        return absolute(self.budgets, self.full)

    def check_reachable(self, model: Model) -> None:
        """Raise BudgetError where no plan for the unpruned network meets the budgets."""
        start = RoundStart.of(model, self, self.plan())
        check_reachable(start.space, start.nothing_lost(), self.limits(1, 1))

    @property
    def full(self) -> dict[str, float]:
        """What the unpruned network costs, by kind of budget."""
        before = self.plan()
        full = {"macs": float(before.before.macs), "params": float(before.before.params)}
        if before.latency is not None:
            full["latency"] = before.latency[0]
        return full

    def limits(self, number: int, rounds: int) -> tuple[Budget, ...]:
        """The budgets of a round: of the original's cost what it may still be."""
        full, limits = self.full, self.absolute()
        return tuple(
            Budget(b.kind, None, schedule(full[b.kind], min(limits[b.kind], full[b.kind]), rounds)[number - 1])
            if b.kind in full
            else b
            for b in self.budgets
        )


@dataclass(frozen=True)
class RoundStart:
    """The network that a round begins with.

    Attributes:
        names: the original's name of each of its groups.
    """

    structure: Structure
    space: SearchSpace
    names: Mapping[str, str]
    floors: Mapping[str, int]

    @classmethod
    def of(cls, model: Model, origin: Origin, before: WidthPlan) -> RoundStart:
        shape = model.preprocess.shape
        structure = Structure.of(model.net, shape)
        names = ancestors(origin.structure.coupling, structure.coupling)
        structure = structure.within(origin.structure, before.removed, names)
        full = {group.name: group.units for group in origin.structure.coupling}
        units = {group.name: len(group.kept) or full[group.name] for group in before.groups}
        latency = Inherited(origin.latency, names, units, before.removed) if origin.latency else None
        cost = WidthCost(model.net, structure.coupling, shape)
        space = SearchSpace(structure.coupling, structure.segments, cost, latency, origin.constraints)
        share = 1 - origin.constraints.max_ratio
        floors = {g.name: max(1, math.ceil(share * full[names[g.name]] - 1e-9)) for g in structure.coupling}
        return cls(structure, space, names, floors)

    def nothing_lost(self) -> Losses:
        """Losses of zero, for asking what can be reached at all."""
        groups = {
            g.name: ([max(1, g.units // 16, self.floors[g.name]), g.units], [0.0, 0.0]) for g in self.structure.coupling
        }
        return Losses(groups, {s.name: 0.0 for s in self.structure.segments if s.removable})

    def planner(self, measured: Measured | None, budgets: Sequence[Budget], score: Callable[[], Scores]) -> Planner:
        """Make the planner for the budgets, from measured losses or, if there are none, from scores.

        Args:
            score: is asked for the scores where there are no losses.
        """
        if measured is None:
            scores = score()
            floors = {name: slice(floor - 1, None) for name, floor in self.floors.items()}
            groups = {
                name: (np.asarray(units)[floors[name]], np.asarray(loss)[floors[name]])
                for name, (units, loss) in Losses.of_scores(scores).groups.items()
            }
            return Planner(self.space, Losses(groups), budgets, by_scores(scores))
        curves = measured.curves

        def keep(name: str, units: int) -> Sequence[int]:
            return curves[name].kept(units)

        losses = Losses({name: self._above_floor(name, curve) for name, curve in curves.items()}, measured.removals)
        return Planner(self.space, losses, budgets, keep)

    def _above_floor(self, name: str, curve: Curve) -> tuple[list[int], list[float]]:
        units = sorted({u for u in curve.units if u >= self.floors[name]} | {max(self.floors[name], curve.units[0])})
        return units, curve.at(units)


@dataclass(frozen=True)
class Planner:
    """The plan of least loss, for any limit on the first budget; the other budgets stay as they are.

    Attributes:
        keep: which units stay.
    """

    space: SearchSpace
    losses: Losses
    budgets: Sequence[Budget]
    keep: Keep

    @cached_property
    def front(self) -> Front | None:
        """The least loss at every limit on the first budget, were there no others; None for a ratio."""
        kind = self.budgets[0].kind
        return None if kind == "ratio" else front(self.space, self.losses, kind)

    def plan(self, limit: float | None = None) -> WidthPlan:
        """The plan of least loss.

        Args:
            limit: in place of the first budget's own.

        Raises:
            BudgetError: see ``allocate``.
        """
        first, *others = self.budgets
        limit = first.limit if limit is None else limit
        if self.front is None or limit is None:
            return allocate(self.space, self.losses, first, self.keep)
        if not others:
            return self.front.plan(limit, self.keep)
        caps = {budget.kind: float(budget.limit or 0) for budget in others if budget.kind != "ratio"}
        return allocate(self.space, self.losses, Budget(first.kind, None, limit), self.keep, caps)
