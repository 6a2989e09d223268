from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reporting.outcome import budget_ms, plan_of, predictions, widths
from benchmarks.results.base import Bounds
from compress.files import write_json
from compress.graph.plan import GroupPlan, WidthPlan
from compress.models.cost import Cost
from compress.run import Run

GROUPS = (
    GroupPlan("conv1", "inner", 8, 6, tuple(range(6))),
    GroupPlan("conv2", "inner", 8, 8, tuple(range(8))),
    GroupPlan("layer1.1.conv1", "inner", 8, 0, ()),
)
PLAN = WidthPlan(GROUPS, Cost(100, 10), Cost(50, 5), ("layer1.1",), (4.0, 2.0))


def test_what_was_asked_for_planned_and_measured_stand_side_by_side() -> None:
    section = predictions(PLAN, 2.2, Bounds(value=4.0, lo=3.9, hi=4.1), Bounds(value=2.5, lo=2.4, hi=2.6))
    assert section is not None
    assert section.rows == [
        ["dense", "", "4.000", "4.000 [3.900, 4.100]", "+0.0"],
        ["pruned", "2.200 (55.0%)", "2.000 (50.0%)", "2.500 [2.400, 2.600]", "-20.0"],
    ]
    unmeasured = predictions(PLAN, None, None, None)
    assert unmeasured is not None
    assert unmeasured.rows[1] == ["pruned", "", "2.000 (50.0%)", "", ""]
    assert predictions(WidthPlan(GROUPS, PLAN.before, PLAN.after), 2.2, None, None) is None


@pytest.mark.parametrize(
    ("settings", "ms"),
    [({"latency": "55%"}, 2.2), ({"latency": "2.5 ms"}, 2.5), ({"macs": "50%"}, None), ({"latency": "soon"}, None)],
)
def test_the_budget_is_what_pruning_was_asked_for(tmp_path: Path, settings: dict[str, str], ms: float | None) -> None:
    run = Run(tmp_path)
    run.stage("prune", lambda out, _: write_json(out / "plan.json", PLAN.to_json()), settings={"prune": settings})
    assert budget_ms(run, PLAN) == (ms if ms is None else pytest.approx(ms))


def test_only_what_changed_is_listed() -> None:
    section = widths(PLAN)
    assert section is not None
    assert [row[0] for row in section.rows] == ["conv1", "layer1.1"]
    assert section.rows[0] == ["conv1", "inner", "8", "6", "75%"]
    assert widths(WidthPlan(GROUPS[1:2], PLAN.before, PLAN.before)) is None


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Stages that follow one another, with no more in them than what is asked about."""
    run = Run(tmp_path)
    prune(run, PLAN)
    parent = run.folder("prune")
    for stage in ("finetune", "export"):
        parent = run.stage(stage, lambda out, _: write_json(out / "of.json", 0), settings={}, parents=[parent])
    return run


def prune(run: Run, plan: WidthPlan) -> None:
    record = plan.to_json()
    run.stage("prune", lambda out, _: write_json(out / "plan.json", record), settings=record)


def test_the_plan_is_the_exported_networks_own(run: Run) -> None:
    assert plan_of(run) == PLAN
    prune(run, WidthPlan(GROUPS[:1], PLAN.before, PLAN.after))
    assert plan_of(run) is None  # pruned anew, and not yet exported


def test_no_plan_without_pruning(tmp_path: Path) -> None:
    assert plan_of(Run(tmp_path)) is None
