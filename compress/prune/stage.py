"""The stage ``prune``: reads the baseline and the latency table, writes the cut network and the plan behind it.

With ``prune.rounds`` above 1 the budget is approached step by step; the networks between are kept in ``rounds/``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from compress.config import Budget, Config
from compress.data import data_settings, open_data
from compress.errors import ConfigError, DataError, ModelError
from compress.models.cost import count
from compress.models.model import Model, load_model, save_model
from compress.progress import SILENT, Progress
from compress.prune.allocate import Losses, SearchSpace, allocate, by_scores, check_reachable, front
from compress.prune.constraints import Constraints
from compress.prune.latency import LatencyModel
from compress.prune.latency_table import LatencyTable, fingerprint
from compress.prune.losses import Measured, channel_scores, load_losses, measured_losses, pruning_images
from compress.prune.place import here
from compress.prune.plan import WidthPlan
from compress.prune.reconstruct import repair
from compress.prune.rounds import Inherited, absolute, ancestors, combined, schedule, untouched
from compress.prune.sensitivity import Curve
from compress.prune.structure import Structure
from compress.prune.surgery import cut, verify
from compress.prune.width_cost import WidthCost
from compress.run import Run, read_json, write_json
from compress.train.loop import fit

TABLE = "latency_table.json"
PLAN = "plan.json"
FRONT = "front.json"


def prune(config: Config, run: Run) -> Path:
    """Remove channels and blocks of the baseline within the budgets: the network, ``plan.json`` and ``front.json``.

    Raises:
        BudgetError, ConfigError, ModelError: see ``Structure.of``, ``LatencyTable`` and ``allocate``.
        DataError: there are no images to look at, or they do not fit the network's classes.
    """
    network = baseline = run.need("baseline")
    origin = _Origin.of(config, run, baseline)
    if config.prune.rounds > 1 and config.prune.round_epochs and open_data(config).train is None:
        raise DataError(
            "fine-tuning between rounds needs images, and data.train is not set", remedy="set prune.round_epochs=0"
        )
    between = Run(run.directory / "rounds", force=run.force, progress=run.progress)
    for number in range(1, config.prune.rounds):
        network = _round(config, run, between, f"round{number}", origin, network, number)
    return _round(config, run, run, "prune", origin, network, config.prune.rounds)


@dataclass(frozen=True)
class _Origin:
    """The unpruned network, and what is asked of the pruned one.

    Attributes:
        table: the file that ``latency`` is from.
    """

    folder: Path
    net: nn.Module
    structure: Structure
    cost: WidthCost
    latency: LatencyModel | None
    table: Path | None
    budgets: tuple[Budget, ...]
    constraints: Constraints

    @classmethod
    def of(cls, config: Config, run: Run, folder: Path) -> _Origin:
        settings, model = config.prune, load_model(folder)
        shape = model.preprocess.shape
        structure = Structure.of(model.net, shape)
        budgets = settings.budgets()
        by_latency = any(budget.kind == "latency" for budget in budgets)
        latency, table = None, None
        if by_latency or settings.table is not None:
            table = settings.table or run.directory / TABLE
            measured = LatencyTable.read(table)
            network, allowed = fingerprint(model.net, shape), settings.allow_foreign_table
            measured.check(network, config.target, here(config.target), foreign=allowed)
            if {member.name for member in measured.segments} != {segment.name for segment in structure.segments}:
                raise ConfigError(
                    f"{table} cuts the network into other pieces than this version does",
                    remedy="measure it anew with `python -m benchmarks.profile --config FILE`",
                )
            latency = LatencyModel(measured)
        multiple = settings.multiple or (8 if latency is None else 1)
        constraints = Constraints(multiple, settings.min_width, settings.keep, settings.max_ratio, settings.depth)
        cost = WidthCost(model.net, structure.coupling, shape)
        return cls(folder, model.net, structure, cost, latency, table, budgets, constraints)

    def plan(self) -> WidthPlan:
        """The plan that keeps everything."""
        whole = self.cost.of(self.cost.full)
        return untouched(self.structure.coupling, whole, self.latency.network_ms({}) if self.latency else None)

    def limits(self, number: int, rounds: int) -> tuple[Budget, ...]:
        """The budgets of a round: of the original's cost what it may still be."""
        before = self.plan()
        full = {"macs": float(before.before.macs), "params": float(before.before.params)}
        if before.latency is not None:
            full["latency"] = before.latency[0]
        limits = absolute(self.budgets, full)
        return tuple(
            Budget(b.kind, None, schedule(full[b.kind], min(limits[b.kind], full[b.kind]), rounds)[number - 1])
            if b.kind in full
            else b
            for b in self.budgets
        )


def _round(config: Config, run: Run, store: Run, name: str, origin: _Origin, network: Path, number: int) -> Path:
    """Prune the network in the folder ``network`` to the budget of a round; stage ``name`` of ``store``."""
    settings, last = config.prune, number == config.prune.rounds
    first = network == origin.folder
    before = origin.plan() if first else WidthPlan.from_json(read_json(network / PLAN))
    model = load_model(network)
    for key, value in model.net.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ModelError(f"'{key}' is not finite", remedy="load another checkpoint, or train again")
    subject = _Subject.of(model, origin, before)
    budgets = origin.limits(number, settings.rounds)
    check_reachable(subject.space, subject.nothing_lost(), budgets)  # told before the images are looked at
    losses = measured_losses(config, run, network, subject.structure) if settings.repair else None

    def work(out: Path, scratch: Path) -> None:
        images = pruning_images(config, model, SILENT) if losses else []
        plan = subject.decide(config, model, load_losses(losses) if losses else None, budgets, out, run.progress)
        structure = subject.structure
        solved = model.net
        if losses:
            solved = repair(model.net, structure, plan.kept, plan.removed, images, progress=run.progress)
        removed = structure.named(plan.removed)
        net = cut(solved, structure.coupling, plan.kept, removed)
        verify(solved, net, structure.coupling, plan.kept, model.example(2), removed)
        if (cost := count(net, model.preprocess.shape)) != plan.after:
            raise ModelError(f"the plan promises {plan.after}, the pruned network costs {cost}")
        plan = combined(origin.structure.coupling, before, subject.names, plan)
        if not last and settings.round_epochs:
            _train(config, net, model, origin.net, scratch, run.progress)
        save_model(model.clone(net), out)
        write_json(out / PLAN, plan.to_json())
        for line in describe(plan):
            run.progress.note(f"  {line}")

    chosen = settings.model_dump(mode="json", exclude={"table", "allow_foreign_table"})
    stage_settings = {"prune": chosen, "data": data_settings(config), "seed": config.run.seed}
    if not last and settings.round_epochs:
        stage_settings["finetune"] = config.finetune.model_dump(mode="json")
    parents = [network, origin.folder, *filter(None, (losses, origin.table))]
    return store.stage(name, work, settings=stage_settings, parents=list(dict.fromkeys(parents)))


@dataclass(frozen=True)
class _Subject:
    """The network that a round begins with.

    Attributes:
        names: the original's name of each of its groups.
    """

    structure: Structure
    space: SearchSpace
    names: Mapping[str, str]
    floors: Mapping[str, int]

    @classmethod
    def of(cls, model: Model, origin: _Origin, before: WidthPlan) -> _Subject:
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

    def decide(
        self,
        config: Config,
        model: Model,
        measured: Measured | None,
        budgets: Sequence[Budget],
        out: Path,
        progress: Progress,
    ) -> WidthPlan:
        """The plan of least loss, and ``front.json`` with the loss at every other budget."""
        if measured is None:
            scores = channel_scores(config, model, self.structure.coupling, progress)
            losses = Losses(
                {
                    name: (np.asarray(units)[self.floors[name] - 1 :], np.asarray(loss)[self.floors[name] - 1 :])
                    for name, (units, loss) in Losses.of_scores(scores).groups.items()
                }
            )
            keep = by_scores(scores)
        else:
            curves = measured.curves
            losses = Losses({name: self._above_floor(name, curve) for name, curve in curves.items()}, measured.removals)

            def keep(name: str, units: int) -> Sequence[int]:
                return curves[name].kept(units)

        primary, *others = budgets
        if primary.kind == "ratio":
            return allocate(self.space, losses, primary, keep)
        found = front(self.space, losses, primary.kind)
        costs, lost = found.points()
        write_json(
            out / FRONT, {"kind": primary.kind, "full": found.full, "cost": costs.tolist(), "loss": lost.tolist()}
        )
        if not others:
            return found.plan(float(primary.limit or 0), keep)
        caps = {budget.kind: float(budget.limit or 0) for budget in others if budget.kind != "ratio"}
        return allocate(self.space, losses, primary, keep, caps)

    def _above_floor(self, name: str, curve: Curve) -> tuple[list[int], list[float]]:
        units = sorted({u for u in curve.units if u >= self.floors[name]} | {max(self.floors[name], curve.units[0])})
        return units, curve.at(units)


def describe(plan: WidthPlan) -> list[str]:
    """What a plan does, in lines to print."""
    lines = [f"{g.name} ({g.kind}): {g.before} -> {g.after} channels" for g in plan.groups if 0 < g.after < g.before]
    lines += [f"{name}: removed" for name in plan.removed]
    for what, before, after in (
        ("MACs", plan.before.macs, plan.after.macs),
        ("parameters", plan.before.params, plan.after.params),
    ):
        lines.append(f"{what}: {before:,} -> {after:,} ({after / before:.1%})")
    if plan.latency is not None:
        dense, pruned = plan.latency
        lines.append(f"INT8 latency, predicted: {dense:.3f} -> {pruned:.3f} ms ({pruned / dense:.1%})")
    return lines


def _train(config: Config, net: nn.Module, model: Model, teacher: nn.Module, scratch: Path, progress: Progress) -> None:
    data, settings = open_data(config), config.finetune
    assert data.train is not None
    fit(
        net,
        data.train,
        data.holdout,
        model.preprocess,
        settings,
        epochs=config.prune.round_epochs,
        seed=config.run.seed,
        workers=config.data.workers,
        teacher=teacher if settings.distill > 0 else None,
        scratch=scratch,
        progress=progress,
    )
