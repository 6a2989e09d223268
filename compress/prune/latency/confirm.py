"""Measure the plans near a latency budget as whole networks on the target's engine, and take the best that meets it.

A latency model is wrong by a few percent. So the neighbours of the plan that just meets the budget by prediction are
timed as whole INT8 networks, together with the unpruned one, in one interleaved run.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.config import TargetConfig
from compress.engines.harness import Bounds, Interval, ask, conditions
from compress.errors import BudgetError
from compress.files import write_json
from compress.graph.plan import WidthPlan
from compress.parse import Positive

Measure = Callable[[Sequence[WidthPlan]], Sequence[Interval]]
"""Latency of plans as a share of the unpruned network's."""

_AROUND = (1.06, 1.04, 1.02, 1.0, 0.98, 0.96, 0.94)  # limits that are tried at once, of the one in the middle
_ATTEMPTS = 3


@dataclass(frozen=True)
class Candidate:
    """A plan that was measured.

    Attributes:
        limit: ms by the latency model within which it loses least.
        share: measured, of the unpruned network's latency.
        ms: the same on the scale of the latency table.
    """

    limit: float
    plan: WidthPlan
    share: Interval
    ms: float

    def tried(self) -> Tried:
        """As ``confirmed.json`` holds it."""
        assert self.plan.latency is not None
        share = Bounds(self.share.value, self.share.low, self.share.high)
        return Tried(self.limit, self.plan.latency[1], share, self.ms)

    def __str__(self) -> str:
        assert self.plan.latency is not None
        return (
            f"predicted {self.plan.latency[1]:.3f} ms, measured {self.ms:.3f} ms, {self.share} of the unpruned network"
        )


@dataclass(frozen=True)
class Tried:
    """A plan that was measured: the limit that it was made for, its latency as predicted and as measured."""

    limit_ms: Positive
    predicted_ms: Positive
    share: Bounds
    ms: Positive


@dataclass(frozen=True)
class ConfirmedFile:
    """What ``confirmed.json`` holds: the budget, all that were tried, and which of them was taken."""

    limit_ms: Positive
    tried: tuple[Tried, ...]
    taken: int


def confirmed(
    planned: Callable[[float], WidthPlan], limit: float, unpruned: float, measure: Measure
) -> tuple[Candidate, list[Candidate]]:
    """Return the widest plan that was measured to meet a limit, and all measured plans, widest first.

    Where all of the first neighbours are too slow, or all are fast enough, the next attempt is where they point to.

    Args:
        planned: the plan of least loss within a number of ms by the latency model.
        limit: ms.
        unpruned: ms of the unpruned network by the latency model.

    Raises:
        BudgetError: there is no plan for the limit, or none that was measured meets it.
        EngineError: what ``measure`` raises.
    """
    planned(limit)  # where there is none, this says what can be reached
    tried: list[Candidate] = []
    middle = limit
    for _ in range(_ATTEMPTS):
        plans = _distinct(planned, [middle * factor for factor in _AROUND], [one.plan for one in tried])
        if not plans:
            break
        shares = measure([plan for _, plan in plans])
        tried += [
            Candidate(at, plan, share, share.value * unpruned) for (at, plan), share in zip(plans, shares, strict=True)
        ]
        tried.sort(key=lambda one: -one.limit)
        widest, narrowest = tried[0], tried[-1]
        if widest.ms <= limit:
            middle = widest.limit * limit / widest.ms
        elif narrowest.ms > limit:
            middle = narrowest.limit * limit / narrowest.ms
        else:
            break
    fitting = [one for one in tried if one.ms <= limit]
    if not fitting:
        least = min(tried, key=lambda one: one.ms)
        raise BudgetError(
            f"a budget of {limit:.3f} ms cannot be met: of {len(tried)} plans the fastest was {least}",
            remedy="raise the budget, or measure the latency table again while the machine is quiet",
        )
    return fitting[0], tried


def on_engine(baseline: Path, target: TargetConfig, against: Path | None = None) -> Measure:
    """Measures plans of the network in the folder ``baseline``, by ``python -m benchmarks.plan_latency``.

    Args:
        against: folder of the network whose latency they are shares of; default: ``baseline``.
    """

    def measure(plans: Sequence[WidthPlan]) -> list[Interval]:
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / f"{index}.json" for index in range(len(plans))]
            for file, plan in zip(files, plans, strict=True):
                write_json(file, plan.to_json())
            # Its factory is trusted: this process has loaded the folder, as the user's configuration names it.
            arguments = ["--model", str(baseline), "--trust", "--target", target.name, "--engine", target.engine]
            arguments += [] if against is None else ["--against", str(against)]
            arguments += [*conditions(target), "--plan", *map(str, files)]
            answer = ask("the plans", "benchmarks.plan_latency", arguments, _Answer)
        return [Interval.of(one.ratio) for one in answer.plans]

    return measure


@dataclass(frozen=True)
class _Ratio:
    ratio: Bounds


@dataclass(frozen=True)
class _Answer:
    """What is wanted of the harness's JSON."""

    plans: tuple[_Ratio, ...]


def _distinct(
    planned: Callable[[float], WidthPlan], limits: Sequence[float], known: Sequence[WidthPlan]
) -> list[tuple[float, WidthPlan]]:
    """The plans for limits, widest first, each under the least limit that it belongs to; without those known."""
    found: dict[object, tuple[float, WidthPlan]] = {}
    seen = {_widths(plan) for plan in known}
    for limit in limits:
        with contextlib.suppress(BudgetError):  # below what can be reached
            plan = planned(limit)
            if (key := _widths(plan)) not in seen:
                found[key] = limit, plan
    return list(found.values())


def _widths(plan: WidthPlan) -> object:
    return tuple(group.after for group in plan.groups), plan.removed
