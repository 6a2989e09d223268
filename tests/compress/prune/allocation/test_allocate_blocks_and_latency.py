"""Streams, inner widths and whole blocks in one problem, under limits on latency, MACs and parameters."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from user_nets import Heads, Plain, lively

from compress.config import Budget
from compress.errors import BudgetError, ConfigError, ModelError
from compress.graph.groups import couple
from compress.graph.plan import GroupPlan, WidthPlan
from compress.graph.segments import segments
from compress.models.cost import Cost, count
from compress.models.registry import build
from compress.parse import parse
from compress.prune.allocation.allocate import Constraints, Losses, SearchSpace, allocate, front
from compress.prune.allocation.cost import WidthCost
from compress.prune.surgery import cut, verify

SHAPE = (3, 32, 32)


class Staircase:
    """The latency of an engine whose kernels step at 16 channels and take 0.1 ms a segment at least."""

    offset, scale = 0.2, 1.1

    def __init__(self, cost, coupling, pieces):
        self.cost = cost
        self.segments = {segment.name: segment for segment in pieces}
        self.units = {group.name: group.units for group in coupling}

    def segment_ms(self, segment, units):
        groups = self.segments[segment].groups
        padded = {g: np.minimum(-(-np.asarray(units.get(g, self.units[g])) // 16) * 16, self.units[g]) for g in groups}
        return self.cost.segment(self.segments[segment], padded)[0] / 1e6 + 0.1

    def network_ms(self, units, removed=()):
        stay = self.segments.keys() - set(removed)
        return self.offset + self.scale * sum(float(self.segment_ms(name, units)) for name in stay)

    def candidates(self, group):
        return tuple(n for n in range(1, self.units[group] + 1) if n % 16 == 0 or n == self.units[group])


def a_space(net, latency=True, **constraints):
    coupling = couple(net, SHAPE)
    pieces = segments(net, coupling, SHAPE)
    cost = WidthCost(net, coupling, SHAPE)
    model = Staircase(cost, coupling, pieces) if latency else None
    return SearchSpace(coupling, pieces, cost, model, Constraints(**constraints))


def some_losses(space, seed=0, removal=0.5):
    """Curves that fall towards all units, some groups dearer than others."""
    generator = np.random.default_rng(seed)
    groups = {}
    for group in space.coupling:
        units = np.arange(1, group.units + 1)
        groups[group.name] = units, generator.uniform(0.1, 1) * (1 - units / group.units) ** generator.uniform(1, 3)
    return Losses(groups, {s.name: removal * generator.uniform(0.1, 1) for s in space.segments if s.removable})


def first(group, count):
    return range(count)


def loss_of(plan, losses):
    kept = (np.interp(len(g.kept), *losses.groups[g.name]) for g in plan.groups if g.kept)
    return sum(kept) + sum(losses.removals[name] for name in plan.removed)


@pytest.fixture(scope="module")
def cifar():
    return a_space(build("cifar_resnet20"))


@pytest.mark.parametrize("fraction", [0.9, 0.7, 0.5, 0.3])
@pytest.mark.parametrize("kind", ["latency", "macs", "params"])
def test_the_budget_is_met_with_little_left(cifar, kind, fraction):
    plan = allocate(cifar, some_losses(cifar), Budget(kind, fraction, None), first)
    used = {
        "latency": plan.latency[1] / plan.latency[0],
        "macs": plan.after.macs / plan.before.macs,
        "params": plan.after.params / plan.before.params,
    }[kind]
    assert fraction - 0.08 < used <= fraction
    assert parse(json.dumps(plan.to_json()), WidthPlan, "plan.json", remedy="") == plan


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 999), share=st.floats(0.2, 1.0))
def test_no_other_assignment_loses_less(seed, share):
    """On a small network, against all assignments of the candidates with and without each block."""
    space = a_space(Plain(), latency=False, multiple=4, min_width=4)
    losses = some_losses(space, seed)
    names = [group.name for group in space.coupling]
    blocks = [segment for segment in space.segments if segment.removable]
    limit = share * space.cost.of(space.cost.full).macs * (1 + 1e-9)
    best = np.inf
    for units in itertools.product(*(range(4, group.units + 1, 4) for group in space.coupling)):
        for gone in itertools.product([False, True], repeat=len(blocks)):
            removed = [block for block, out in zip(blocks, gone, strict=True) if out]
            if space.cost.of(np.array(units, dtype=float), removed).macs <= limit:
                inner = {name for block in removed for name in block.groups if name.endswith("conv1")}
                kept = zip(names, units, strict=True)
                loss = sum(np.interp(n, *losses.groups[name]) for name, n in kept if name not in inner)
                best = min(best, loss + sum(losses.removals[block.name] for block in removed))
    try:
        plan = allocate(space, losses, Budget("macs", share, None), first)
    except BudgetError:
        assert best == np.inf
        return
    assert plan.after.macs <= limit
    assert loss_of(plan, losses) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("make", [lambda: build("cifar_resnet20"), lambda: build("resnet50", 10), Heads])
def test_the_plan_is_what_is_cut(make):
    torch.manual_seed(0)
    net = lively(make())
    space = a_space(net)
    plan = allocate(space, some_losses(space, removal=0.2), Budget("latency", 0.5, None), first)
    removed = [segment for segment in space.segments if segment.name in plan.removed]
    assert removed
    pruned = cut(net, space.coupling, plan.kept, removed)
    verify(net, pruned, space.coupling, plan.kept, torch.randn(2, *SHAPE), removed)
    assert count(pruned, SHAPE) == plan.after
    gone = {name for segment in removed for name in segment.groups if name.startswith(segment.name) and "conv1" in name}
    assert {group.name for group in plan.groups if not group.kept} >= gone
    assert all(group.after == 0 for group in plan.groups if not group.kept)


def test_one_pass_answers_every_budget(cifar):
    losses = some_losses(cifar)
    whole = front(cifar, losses, "latency")
    costs, least = whole.points()
    assert (np.diff(costs) > 0).all()
    assert (np.diff(least) < 0).all()
    assert whole.full == pytest.approx(costs[-1], rel=0.01)
    for fraction in (1.0, 0.8, 0.5, 0.3):
        limit = fraction * whole.full
        plan = whole.plan(limit, first)
        assert plan.latency[1] <= limit * (1 + 1e-9)
        alone = allocate(cifar, losses, Budget("latency", None, limit), first)
        assert loss_of(plan, losses) == pytest.approx(loss_of(alone, losses), rel=0.02, abs=1e-3)
    assert loss_of(whole.plan(whole.full, first), losses) == 0


@pytest.mark.parametrize("fraction", [1.0, 1.0001, 1.06, 2.0])
def test_a_limit_above_what_the_network_costs_takes_nothing_away(cifar, fraction):
    losses = some_losses(cifar)
    whole = front(cifar, losses, "latency")
    limit = fraction * whole.full
    for plan in (whole.plan(limit, first), allocate(cifar, losses, Budget("latency", None, limit), first)):
        assert loss_of(plan, losses) == 0
        assert plan.removed == ()
        assert plan.after == plan.before


def test_caps_hold_together_with_the_latency(cifar):
    losses = some_losses(cifar)
    budget = Budget("latency", 0.6, None)
    free = allocate(cifar, losses, budget, first)
    loose = {"macs": 1.1 * free.after.macs, "params": 1.1 * free.after.params}
    assert allocate(cifar, losses, budget, first, loose) == free
    for caps in (
        {"macs": 0.9 * free.after.macs},
        {"params": 0.9 * free.after.params},
        {"macs": 0.95 * free.after.macs, "params": 0.9 * free.after.params},
    ):
        plan = allocate(cifar, losses, budget, first, caps)
        assert plan.latency[1] <= 0.6 * plan.latency[0] * (1 + 1e-9)
        assert all(getattr(plan.after, kind) <= cap for kind, cap in caps.items())
        assert loss_of(plan, losses) >= loss_of(free, losses)


def test_nothing_that_a_wider_width_matches_is_chosen(cifar):
    plan = allocate(cifar, some_losses(cifar), Budget("latency", 0.5, None), first)
    assert {group.after % 16 for group in plan.groups} == {0}


def test_blocks_stay_where_the_user_says_so(cifar):
    losses = some_losses(cifar, removal=0.01)

    def removed(**constraints):
        space = SearchSpace(cifar.coupling, cifar.segments, cifar.cost, cifar.latency, Constraints(**constraints))
        return set(allocate(space, losses, Budget("latency", 0.5, None), first).removed)

    some, *others = removed()
    assert others
    assert removed(depth=False) == set()
    assert not {some, others[0]} & removed(keep=(some, f"{others[0]}.conv1"))
    assert {name[:6] for name in removed(keep=("layer1.*",))} <= {"layer2", "layer3"}


def test_no_group_loses_more_than_its_share(cifar):
    space = SearchSpace(cifar.coupling, cifar.segments, cifar.cost, None, Constraints(max_ratio=0.3, depth=False))
    plan = allocate(space, some_losses(space), Budget("macs", 0.7, None), first)
    assert all(group.after >= 0.7 * group.before for group in plan.groups)
    assert any(group.after < group.before for group in plan.groups)
    assert plan.latency is None


def test_a_group_gets_no_narrower_than_its_curve(cifar):
    losses = some_losses(cifar)
    short = Losses({name: (u[len(u) // 2 :], loss[len(u) // 2 :]) for name, (u, loss) in losses.groups.items()})
    space = SearchSpace(cifar.coupling, cifar.segments, cifar.cost)
    plan = allocate(space, short, Budget("macs", 0.4, None), first)
    assert all(group.after > 0.5 * group.before for group in plan.groups)


def test_a_latency_out_of_reach_says_what_is_reachable_and_what_would_help(cifar):
    losses = some_losses(cifar)
    constraints = Constraints(multiple=8, keep=("layer3.*",), max_ratio=0.5, depth=False)
    space = SearchSpace(cifar.coupling, cifar.segments, cifar.cost, cifar.latency, constraints)
    for ask in (
        lambda: allocate(space, losses, Budget("latency", None, 2.0), first),
        lambda: front(space, losses, "latency").plan(2.0, first),
    ):
        with pytest.raises(BudgetError, match=r"2\.000 ms .* least reachable is .* ms .*max_ratio=0\.5") as caught:
            ask()
        assert "prune.depth=true reaches" in str(caught.value)
        assert "prune.keep=[] reaches" in str(caught.value)
    lowest = float(str(caught.value).partition("least reachable is ")[2].partition(" ms")[0])
    plan = allocate(space, losses, Budget("latency", None, lowest + 1e-3), first)
    assert plan.latency[1] == pytest.approx(lowest, abs=2e-3)


def test_limits_that_exclude_each_other():
    """The first convolution has the parameters, the second the MACs: each alone can be cut, not both at once."""
    net = nn.Sequential(nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    space = a_space(net, latency=False, min_width=8)
    plan = allocate(space, some_losses(space), Budget("macs", 0.5, None), first)
    cap = float(plan.after.params) * 0.1
    with pytest.raises(BudgetError, match=r"params .* cannot be met"):
        allocate(space, some_losses(space), Budget("macs", 0.5, None), first, {"params": cap})


def test_a_long_chain_of_convolutions():
    layers = [nn.Conv2d(3 if i == 0 else 16, 16, 3, padding=1) for i in range(9)]
    net = nn.Sequential(*(m for conv in layers for m in (conv, nn.ReLU())), nn.Conv2d(16, 4, 1))
    space = a_space(net, latency=False)
    assert len(space.segments) == 1
    plan = allocate(space, some_losses(space), Budget("macs", 0.4, None), first)
    assert 0.39 < plan.after.macs / plan.before.macs <= 0.4


def test_what_cannot_be_worked_with():
    space = a_space(Plain(), latency=False)
    losses = some_losses(space)
    with pytest.raises(ConfigError, match="latency table"):
        allocate(space, losses, Budget("latency", 0.5, None), first)
    broken = Losses({**losses.groups, "body.0.conv1": ([1, 8], [np.nan, 0.0])})
    with pytest.raises(ModelError, match=r"'body\.0\.conv1' is not finite"):
        allocate(space, broken, Budget("macs", 0.5, None), first)


def test_a_plan_of_an_earlier_version_is_read():
    value = {
        "groups": [{"name": "conv1", "kind": "inner", "before": 4, "after": 2, "kept": [0, 3]}],
        "before": {"macs": 10, "params": 4},
        "after": {"macs": 5, "params": 2},
    }
    assert parse(json.dumps(value), WidthPlan, "plan.json", remedy="") == WidthPlan(
        (GroupPlan("conv1", "inner", 4, 2, (0, 3)),), Cost(10, 4), Cost(5, 2), (), None
    )
