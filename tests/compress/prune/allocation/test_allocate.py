import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from user_nets import Plain, lively

from compress.config import Budget
from compress.errors import BudgetError, ConfigError
from compress.graph.groups import couple
from compress.graph.plan import WidthPlan
from compress.graph.segments import segments
from compress.models.cost import count
from compress.models.registry import build
from compress.parse import parse
from compress.prune.allocation.allocate import Constraints, Losses, SearchSpace, allocate, by_scores
from compress.prune.allocation.cost import WidthCost
from compress.prune.importance.random import random_scores
from compress.prune.importance.taylor import taylor
from compress.prune.surgery import cut

SHAPE = (3, 32, 32)


class Case:
    """A network with all that allocation needs."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.coupling = couple(net, SHAPE)
        self.cost = WidthCost(net, self.coupling, SHAPE)
        self.segments = segments(net, self.coupling, SHAPE)
        self.scores = random_scores(self.coupling, 0)

    def plan(self, budget, scores=None, **constraints):
        scores = scores or self.scores
        space = SearchSpace(self.coupling, self.segments, self.cost, constraints=Constraints(**constraints))
        return allocate(space, Losses.of_scores(scores), budget, by_scores(scores))


CASES = {
    "resnet18": Case(build("resnet18", 10)),
    "resnext": Case(build("resnext50_32x4d", 10)),
    "option a": Case(build("cifar_resnet20")),
    "plain": Case(Plain()),
}


def macs(fraction):
    return Budget("macs", fraction, None)


def widths_of(plan):
    return {group.name: group.after for group in plan.groups}


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["option a", "plain"]),
    kind=st.sampled_from(["macs", "params"]),
    fraction=st.floats(0.02, 1.0),
    multiple=st.sampled_from([1, 3, 4, 8, 16]),
    min_width=st.integers(1, 24),
    seed=st.integers(0, 99),
)
def test_a_plan_meets_the_budget_and_the_constraints_or_is_refused(name, kind, fraction, multiple, min_width, seed):
    case = CASES[name]
    budget = Budget(kind, fraction, None)
    scores = random_scores(case.coupling, seed)
    try:
        plan = case.plan(budget, scores, multiple=multiple, min_width=min_width)
    except BudgetError:
        floor = [
            next(
                k
                for k in range(1, g.units + 1)
                if k == g.units or (k * g.unit >= min_width and k * g.unit % multiple == 0)
            )
            for g in case.coupling
        ]
        least = case.cost.of(np.array(floor, dtype=float))
        assert getattr(least, kind) > fraction * getattr(count(case.net, SHAPE), kind)
        return
    assert getattr(plan.after, kind) <= fraction * getattr(plan.before, kind) * (1 + 1e-9)
    for group, planned in zip(case.coupling, plan.groups, strict=True):
        assert planned.before == group.width
        assert planned.after == len(planned.kept) * group.unit
        assert planned.after == planned.before or (planned.after % multiple == 0 and planned.after >= min_width)
        ranked = np.sort(scores[group.name])[::-1]
        assert np.sort(scores[group.name][list(planned.kept)])[::-1].tolist() == ranked[: len(planned.kept)].tolist()
    assert parse(json.dumps(plan.to_json()), WidthPlan, "plan.json", remedy="") == plan


@pytest.mark.parametrize("name", CASES)
def test_the_cut_net_costs_what_the_plan_says(name):
    case = CASES[name]
    plan = case.plan(macs(0.5), multiple=4, min_width=4)
    assert count(case.net, SHAPE) == plan.before
    assert count(cut(case.net, case.coupling, plan.kept), SHAPE) == plan.after


@pytest.mark.parametrize("fraction", [0.9, 0.75, 0.5, 0.3])
def test_little_of_the_budget_is_left_unused(fraction):
    plan = CASES["resnet18"].plan(macs(fraction), multiple=8, min_width=8)
    assert fraction - 0.01 < plan.after.macs / plan.before.macs <= fraction


def test_nothing_goes_where_the_budget_asks_for_nothing():
    plan = CASES["option a"].plan(macs(1.0))
    assert plan.after == plan.before


def test_an_absolute_limit():
    plan = CASES["resnet18"].plan(Budget("params", None, 5e6), multiple=8)
    assert plan.after.params <= 5e6


def test_a_ratio_holds_in_every_group():
    plan = CASES["resnet18"].plan(Budget("ratio", 0.6, None), multiple=32)
    assert {g.before: g.after for g in plan.groups} == {64: 32, 128: 64, 256: 128, 512: 288}


def test_a_ratio_that_the_multiple_forbids_is_refused_by_name():
    with pytest.raises(BudgetError, match=r"'layer1\.2\.conv2' 4 of 16 channels; the least with prune\.multiple=8"):
        CASES["option a"].plan(Budget("ratio", 0.25, None), multiple=8)


def test_a_budget_out_of_reach_says_what_is_reachable_and_what_would_help():
    with pytest.raises(BudgetError) as caught:
        CASES["option a"].plan(macs(0.05), multiple=8, min_width=8, keep=("layer3.*",))
    text = str(caught.value)
    assert "least reachable is" in text
    assert "prune.multiple=8" in text
    assert "'linear': the network's output" in text
    assert "prune.keep=[] reaches" in text
    assert "prune.multiple=1 and prune.min_width=1 reaches" in text
    reachable = float(text.partition("least reachable is ")[2].partition("(")[2].partition("%")[0]) / 100
    plan = CASES["option a"].plan(macs(reachable + 0.001), multiple=8, min_width=8, keep=("layer3.*",))
    assert plan.after.macs / plan.before.macs == pytest.approx(reachable, abs=0.001)


def test_kept_layers_keep_all_their_channels():
    widths = widths_of(CASES["resnet18"].plan(macs(0.4), keep=("layer1.*", "layer4.1.conv1", "layer3.1.bn2")))
    kept = ["layer1.1.conv2", "layer1.0.conv1", "layer1.1.conv1", "layer4.1.conv1", "layer3.1.conv2"]
    assert [widths[name] for name in kept] == [64, 64, 64, 512, 256]


@pytest.mark.parametrize(
    ("pattern", "hint"), [("layer1.0.cnv1", "layer1.0.conv1"), ("layer1", r"layer1\.\*"), ("zzz", "layers: conv1, ")]
)
@pytest.mark.parametrize("budget", [macs(0.5), Budget("ratio", 0.5, None)])
def test_an_unknown_layer_to_keep_is_an_error(pattern, hint, budget):
    with pytest.raises(ConfigError, match=hint):
        CASES["resnet18"].plan(budget, keep=(pattern,))


def test_a_latency_budget_needs_a_table():
    with pytest.raises(ConfigError, match="latency table"):
        CASES["plain"].plan(Budget("latency", 0.5, None))


def test_a_group_that_starts_off_the_multiple_stays_or_ends_on_it():
    case = Case(nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)))
    assert widths_of(case.plan(macs(1.0), multiple=8)) == {"0": 20, "2": 6}
    assert widths_of(case.plan(macs(0.9), multiple=8)) == {"0": 16, "2": 6}
    assert widths_of(case.plan(macs(0.45), multiple=8)) == {"0": 8, "2": 6}


def test_a_dead_layer_goes_first():
    """One whose weights are next to nothing is cut to the bone, not left whole because all its channels are alike."""
    net = lively(Plain())
    with torch.no_grad():
        for parameter in net.body[1].conv1.parameters():
            parameter *= 1e-6
    case = Case(net)
    x, y = torch.randn(8, *SHAPE), torch.arange(8) % 5
    scores = taylor(net, case.coupling, [(x, y)])
    assert widths_of(case.plan(macs(0.8), scores, multiple=2, min_width=2))["body.1.conv1"] == 2


def test_the_less_important_group_is_cut():
    case = CASES["resnet18"]
    scores = {group.name: np.full(group.units, 1.0) for group in case.coupling}
    scores["layer4.0.conv1"] *= 1e-3
    widths = widths_of(case.plan(macs(0.95), scores, multiple=8, min_width=8))
    assert widths["layer4.0.conv1"] < 512
    assert all(widths[g.name] == g.width for g in case.coupling if g.name != "layer4.0.conv1")
