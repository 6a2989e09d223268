"""Pruning in steps, in the names of the network that the first step began with."""

import shutil

import pytest
import torch
from test_prune_stage import SIZE, config, with_baseline
from torch import nn
from user_nets import lively

from compress.files import tree_sha256
from compress.frontend.raising import raised
from compress.graph.groups import couple
from compress.graph.plan import WidthPlan
from compress.graph.structure import Structure
from compress.models.cost import count
from compress.models.model import load_model
from compress.models.registry import build
from compress.prune.iterative import Inherited, ancestors, schedule
from compress.prune.stage import prune
from compress.prune.surgery import cut
from compress.run import Run

SHAPE = SIZE.shape


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_limits_fall_by_the_same_factor_and_end_at_the_goal(rounds):
    limits = schedule(100.0, 30.0, rounds)
    factors = [after / before for before, after in zip([100.0, *limits], limits, strict=False)]
    assert limits[-1] == pytest.approx(30.0)
    assert factors == pytest.approx([0.3 ** (1 / rounds)] * rounds)


def without_blocks(*names):
    net = raised(lively(build("cifar_resnet20")), SHAPE)
    structure = Structure.of(net, SHAPE)
    kept = {group.name: range(group.units // 2) for group in structure.coupling if group.kind == "stream"}
    return structure.coupling, couple(cut(net, structure.coupling, kept, structure.named(names)), SHAPE)


def test_a_group_is_known_by_its_old_name_though_the_layer_that_named_it_is_gone():
    original, pruned = without_blocks("layer1.2", "layer3.2", "layer3.1")
    names = ancestors(original, pruned)
    assert names["layer1.1.conv2"] == "layer1.2.conv2"
    assert names["layer3.0.shortcut.0"] == "layer3.2.conv2"
    assert names["layer2.0.conv1"] == "layer2.0.conv1"
    assert not {"layer1.2.conv1", "layer3.1.conv1", "layer3.2.conv1"} & set(names.values())


class Linear:
    """A latency that any width changes: what is asked shows in the answer."""

    offset, scale = 0.5, 2.0

    def segment_ms(self, segment, units):
        return sum(units.values())

    def network_ms(self, units, removed=()):
        return sum(units.values()) - 1000 * len(removed)

    def candidates(self, group):
        return (4, 8, 12, 16)


def test_an_inherited_latency_is_asked_by_new_names_and_answers_for_the_old_network():
    model = Inherited(Linear(), {"new": "old"}, {"old": 10, "other": 3}, ("block",))
    assert model.segment_ms("layer1.0", {"new": 7}) == 7 + 3
    assert model.network_ms({"new": 7}, ("another",)) == 7 + 3 - 2000
    assert model.candidates("new") == (4, 8, 10)
    assert (model.offset, model.scale) == (0.5, 2.0)


def test_rounds_end_at_the_budget_with_one_plan_for_the_whole_way(tmp_path):
    run = with_baseline(tmp_path)
    folder = prune(config("prune.rounds=2", "prune.round_epochs=0", "prune.macs=30%"), run)
    plan = WidthPlan.read(folder / "plan.json")
    between = WidthPlan.read(tmp_path / "rounds" / "round1" / "plan.json")
    before, after = load_model(run.folder("baseline")), load_model(folder)
    assert plan.before == count(before.net, SHAPE)
    assert plan.after == count(after.net, SHAPE)
    assert plan.after.macs <= 0.3 * plan.before.macs < between.after.macs <= 0.3**0.5 * plan.before.macs
    assert all(set(b.kept) <= set(a.kept) for a, b in zip(between.groups, plan.groups, strict=True))
    structure = Structure.of(before.net, SHAPE)
    straight = cut(before.net, structure.coupling, plan.kept, structure.named(plan.removed))
    shapes = {name: value.shape for name, value in straight.state_dict().items()}
    assert shapes == {name: value.shape for name, value in after.net.state_dict().items()}


def test_killed_between_rounds_it_goes_on_with_the_same_bytes(tmp_path):
    settings = config("prune.rounds=2", "prune.round_epochs=0", "prune.macs=40%")
    run = with_baseline(tmp_path)
    whole = tree_sha256(prune(settings, run))
    shutil.rmtree(run.folder("prune"))
    first = tmp_path / "rounds" / "round1" / "plan.json"
    written = first.stat().st_mtime_ns
    assert tree_sha256(prune(settings, Run(tmp_path))) == whole
    assert first.stat().st_mtime_ns == written


class ResNet9(nn.Module):
    """Convolutions between the blocks: without a block they stand next to one another."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.between, self.second = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.first(x)).relu()
        x = self.between(x).relu()
        x = (x + self.second(x)).relu()
        return self.last(x)


def test_a_pruned_network_is_cut_into_the_pieces_that_the_original_was():
    net = raised(lively(ResNet9()), SHAPE)
    original = Structure.of(net, SHAPE)
    (block,) = [segment.name for segment in original.segments if "first" in segment.layers]
    pruned = cut(net, original.coupling, {}, original.named([block]))
    alone = Structure.of(pruned, SHAPE)
    names = ancestors(original.coupling, alone.coupling)
    within = alone.within(original, (block,), names)
    assert [s.name for s in within.segments] == [s.name for s in original.segments if s.name != block]
    assert len(alone.segments) < len(within.segments)  # by itself it would merge two
    assert {layer for s in within.segments for layer in s.layers} == {
        layer for s in alone.segments for layer in s.layers
    }
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(within.executor().finish(0, pruned, {"images": x}), pruned(x))


@pytest.mark.parametrize("how", [["prune.importance=norm", "prune.repair=false"], ["prune.importance=obs"]])
def test_no_group_loses_more_than_its_share_over_all_rounds(tmp_path, how):
    rounds = ["prune.rounds=2", "prune.round_epochs=0", "prune.max_ratio=0.5", "prune.depth=false", "prune.macs=45%"]
    folder = prune(config(*how, *rounds), with_baseline(tmp_path))
    plan = WidthPlan.read(folder / "plan.json")
    assert min(group.after / group.before for group in plan.groups) >= 0.5
