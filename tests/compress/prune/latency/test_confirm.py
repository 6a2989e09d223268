"""Which of the plans near a budget is taken, by what was measured of them. Measurements are scripted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.engines.harness import Interval
from compress.errors import BudgetError
from compress.graph.plan import GroupPlan, WidthPlan
from compress.models.cost import Cost
from compress.prune.latency.confirm import Candidate, confirmed

FULL, UNPRUNED = 1000, 10.0  # units, and ms


def planned(limit: float) -> WidthPlan:
    """The widest network of one group that costs ``limit`` ms, at a hundredth of a millisecond a unit."""
    units = min(FULL, int(limit / UNPRUNED * FULL + 1e-9))
    if units < 100:
        raise BudgetError("the least reachable is 1.0 ms")
    group = GroupPlan("a", "inner", FULL, units, tuple(range(units)))
    return WidthPlan((group,), Cost(FULL, FULL), Cost(units, units), latency=(UNPRUNED, units * UNPRUNED / FULL))


class Engine:
    """Measures what the model predicts, times ``bias``."""

    def __init__(self, bias: float) -> None:
        self.bias, self.asked = bias, 0

    def __call__(self, plans: Sequence[WidthPlan]) -> list[Interval]:
        self.asked += 1
        shares = [plan.groups[0].after / FULL * self.bias for plan in plans]
        return [Interval(share, share * 0.99, share * 1.01) for share in shares]


def test_a_model_that_is_right_is_asked_once() -> None:
    engine = Engine(1.0)
    best, tried = confirmed(planned, 5.0, UNPRUNED, engine)
    assert best.plan == planned(5.0)
    assert engine.asked == 1
    assert [one.limit for one in tried] == sorted((one.limit for one in tried), reverse=True)
    assert len({one.plan.groups[0].after for one in tried}) == len(tried)


@given(bias=st.floats(0.7, 1.4), limit=st.floats(2.0, 9.0))
def test_the_budget_is_met_as_measured_and_nearly_spent(bias: float, limit: float) -> None:
    best, tried = confirmed(planned, limit, UNPRUNED, Engine(bias))
    assert best.ms <= limit
    assert all(one.ms > limit for one in tried if one.limit > best.limit)
    assert best.ms >= 0.93 * limit or best.plan.groups[0].after == FULL


def test_a_plan_that_never_meets_the_budget_is_an_error() -> None:
    with pytest.raises(BudgetError, match=r"of \d+ plans the fastest was predicted"):
        confirmed(planned, 1.2, UNPRUNED, Engine(3.0))
    with pytest.raises(BudgetError, match="least reachable"):
        confirmed(planned, 0.5, UNPRUNED, Engine(1.0))


def test_what_was_measured_can_be_written() -> None:
    one = Candidate(5.1, planned(5.0), Interval(0.49, 0.48, 0.5), 4.9)
    assert asdict(one.tried()) == {
        "limit_ms": 5.1,
        "predicted_ms": 5.0,
        "share": {"value": 0.49, "lo": 0.48, "hi": 0.5},
        "ms": 4.9,
    }
