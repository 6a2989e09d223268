"""Repair a pruned network without training: solve the remaining weights again, layer by layer, in closed form.

One forward sweep. Each layer whose inputs were cut gets the weights that come closest to the original network's output
at that place, given what the pruned network really feeds it (He et al. 2017, arXiv:1707.06168, section 3.2, with the
pruned network's own inputs). The last layer of a block's branch aims at the whole block's output, so that it makes up
for the error of the shortcut as well, and for a block that is removed right after it. Layers that were not cut stay as
they are: a regression on disturbed inputs shrinks its outputs, and layer after layer that adds up.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from compress.graph.executor import See, Values
from compress.graph.groups import kept_rows
from compress.graph.linear_bn import LinearBN, read, write
from compress.graph.structure import Structure
from compress.graph.tracing import Trace
from compress.progress import SILENT, Progress
from compress.prune.importance.masks import masked
from compress.prune.repair.statistics import RIDGES, Moments, Sampler, Statistics, best_ridge, naming, solve

ROWS = 24_000
"""Output positions that a layer's statistics are taken over, over all images."""

_HELD_OUT = 5  # one batch in so many
_OPERANDS = 2


class _Goal(NamedTuple):
    """What the last layer of a branch aims at: that an addition comes out right, whatever its other operand is."""

    addition: str
    own: str  # the addition in which the layer takes part; another one where the blocks between are removed
    other: int  # which operand of ``own`` is not the layer's


def repair(
    net: nn.Module,
    structure: Structure,
    kept: Mapping[str, Sequence[int]],
    removed: Sequence[str],
    images: Sequence[Tensor],
    *,
    steps: range | None = None,
    values: Sequence[Values] | None = None,
    progress: Progress = SILENT,
) -> nn.Module:
    """A copy of ``net`` whose weights make up for what ``kept`` and ``removed`` take away; ``cut`` it afterwards.

    Args:
        net: in eval mode.
        structure: of ``net``.
        kept: unit indices by group name; a group that is not named keeps all.
        removed: names of removed segments.
        images: batches (N, C, H, W), the more the better. One in five is held out to choose how far each layer may go
            from its old weights.
        steps: those of the executor that are swept; default: all.
        values: of ``net`` before the first of ``steps``, so that earlier steps are not run; one per batch of images.
    """
    sweep = _Sweep(net, structure, kept, removed, images, values)
    with masked(sweep.new, structure.coupling, kept, structure.named(removed)):
        for step in progress.track(range(len(sweep.executor)) if steps is None else steps, "repairing"):
            sweep.advance(step)
    return sweep.new


class _Sweep:
    """Both networks on all images, up to the step that the sweep has come to."""

    def __init__(
        self,
        net: nn.Module,
        structure: Structure,
        kept: Mapping[str, Sequence[int]],
        removed: Sequence[str],
        images: Sequence[Tensor],
        values: Sequence[Values] | None,
    ) -> None:
        gone = structure.named(removed)
        self.executor = structure.executor()
        self.net, self.new = net, copy.deepcopy(net)
        self._goals = self._within_a_step(_goals(structure, removed), structure)
        self._rows = kept_rows(net, structure.coupling, kept)
        inside = {layer for segment in gone for layer in segment.layers}
        ahead = {output for output, goal in self._goals.items() if goal.own != goal.addition}
        self._places = [
            p for p in structure.linear_bns if p.layer not in inside and (p.layer in self._rows or p.output in ahead)
        ]
        self._levels = _levels(structure.traced, self._places, self._goals)
        self._sampler = Sampler(ROWS, sum(map(len, images)))
        self._original = self._pruned = self.executor.start(images) if values is None else list(values)
        cuts = [self.executor.step_of(p.node) for p in self._places]
        cuts += [self.executor.step_of(segment.result) for segment in gone]
        self._first = min(cuts, default=len(self.executor))

    def _within_a_step(self, goals: Mapping[str, _Goal], structure: Structure) -> dict[str, _Goal]:
        """The goals of layers that run in the same step as the addition behind them (in an FPN some do not)."""
        step_of, nodes = self.executor.step_of, {p.output: p.node for p in structure.linear_bns}
        return {output: goal for output, goal in goals.items() if step_of(nodes[output]) == step_of(goal.own)}

    def advance(self, step: int) -> None:
        """Solve the layers of one step, and take both networks past it."""
        places = [p for p in self._places if self.executor.step_of(p.node) == step]
        if step < self._first:
            places = []
        targets = self._targets(step, places)
        for level in sorted({self._levels[p.layer] for p in places}):
            self._solve(step, [p for p in places if self._levels[p.layer] == level], targets)
        if self._pruned is self._original and step >= self._first:
            self._pruned = list(self._original)
        for net, batches in ((self.net, self._original), (self.new, self._pruned)):
            for index, values in enumerate(batches):  # in place: what a batch held is let go before the next one runs
                batches[index] = self.executor.run(step, net, values)
            if self._pruned is self._original:
                break

    def _targets(self, step: int, places: Sequence[LinearBN]) -> Mapping[str, list[Tensor]]:
        """Samples (rows, outputs) of the original's tensors that the layers aim at, batch by batch, by node."""
        targets: dict[str, list[Tensor]] = defaultdict(list)
        goals = {self._goals[p.output].addition for p in places if p.output in self._goals}
        wanted = goals | {p.output for p in places if p.output not in self._goals}
        if not wanted:
            return targets
        last = max(map(self.executor.step_of, wanted))
        for index, values in enumerate(self._original):
            for at in range(step, last + 1):
                values = self.executor.run(at, self.net, values, self._sample(index, wanted, targets))
        return targets

    def _sample(self, index: int, wanted: Collection[str], into: dict[str, list[Tensor]]) -> See:
        def see(node: fx.Node, args: tuple[Any, ...], value: Any) -> None:
            if node.name in wanted:
                into[node.name].append(self._sampler.values(value, index))

        return see

    def _solve(self, step: int, places: Sequence[LinearBN], targets: Mapping[str, list[Tensor]]) -> None:
        """New weights for layers of one step none of which feeds another."""
        inputs = {p.node: p for p in places}
        own = {goal.own: p for p in places if (goal := self._goals.get(p.output))}
        moments = {p.layer: (Moments(), Moments()) for p in places}
        for index, values in enumerate(self._pruned):
            x: dict[str, Tensor] = {}
            others: dict[str, Tensor] = {}

            def see(
                node: fx.Node,
                args: tuple[Any, ...],
                value: Any,
                index: int = index,
                x: dict[str, Tensor] = x,
                others: dict[str, Tensor] = others,
            ) -> None:
                if node.name in inputs:
                    layer = self.net.get_submodule(str(node.target))
                    x[node.name] = self._sampler.inputs(layer, args[0], value, index)
                if node.name in own:
                    other = args[self._goals[own[node.name].output].other]
                    others[own[node.name].layer] = self._sampler.values(other, index)

            self.executor.run(step, self.new, values, see)
            for p in places:
                goal = self._goals.get(p.output)
                y = targets[goal.addition][index] - others[p.layer] if goal else targets[p.output][index]
                moments[p.layer][index % _HELD_OUT == 1].add(x[p.node], y)
        for p in places:
            with naming(p.layer):
                rows = self._rows.get(p.layer)
                self._write(p, [part.statistics(rows) for part in moments.pop(p.layer) if part.count])

    def _write(self, place: LinearBN, parts: list[Statistics]) -> None:
        """New weights for a layer, from what was fitted on and, unless there was one batch only, what was held out.

        Takes ``parts`` away: of a wide layer they are gigabytes.
        """
        old, _ = read(self.net, place)
        rows = self._rows.get(place.layer, torch.ones(len(old), dtype=torch.bool))
        if not place.shifts:
            parts[:] = [part.uncentred() for part in parts]
        if len(parts) == 1:
            seen, ridge = parts.pop(), RIDGES[-1]  # nothing tells how far to go: stay near
        else:
            ridge = best_ridge(parts[0], parts[1], old[rows])
            seen = parts.pop(0) + parts.pop()
        a = solve(seen, old[rows], ridge)
        mean = a.T @ seen.mean
        full = torch.zeros_like(old)
        full[rows] = a
        variance = (a * (seen.covariance @ a)).sum(0).clamp(min=0)
        write(self.new, place, full, seen.target_mean - mean, mean, variance)


def _goals(structure: Structure, removed: Collection[str]) -> dict[str, _Goal]:
    """By output node: the additions that the last layers of branches aim at. Of several, the one that reads most."""
    traced, segments = structure.traced, structure.segments
    nodes = {node.name: node for node in traced.graph.nodes}
    places = {p.output: p for p in structure.linear_bns}
    additions = {s.name: a for s in segments if (a := _addition(nodes[s.result])) is not None}
    goals: dict[str, _Goal] = {}
    for index, segment in enumerate(segments):
        own = additions.get(segment.name)
        if own is None or segment.name in removed:
            continue
        operands = own.all_input_nodes
        sizes = {k: _reads(traced, places[n.name]) for k, n in enumerate(operands) if n.name in places}
        if not sizes:
            continue
        mine = max(sizes, key=lambda k: sizes[k])
        addition, result = own, segment.result
        for following in segments[index + 1 :]:
            if following.name not in removed or following.source != result:
                break
            addition, result = additions[following.name], following.result
        goals[operands[mine].name] = _Goal(addition.name, own.name, 1 - mine)
    return goals


def _addition(result: fx.Node) -> fx.Node | None:
    """The addition of two tensors that a segment ends with, or that its last activation reads."""
    for node in (result, *result.all_input_nodes[:1]):
        if list(node.args) == node.all_input_nodes and len(node.args) == _OPERANDS and node.op != "call_module":
            return node
    return None


def _reads(traced: Trace, place: LinearBN) -> int:
    weight = traced.modules[place.layer].weight
    assert isinstance(weight, Tensor)
    return weight[0].numel()


def _levels(traced: Trace, places: Sequence[LinearBN], goals: Mapping[str, _Goal]) -> dict[str, int]:
    """By layer: how many solved layers lie before it, so that layers of one level can be solved together. A layer that
    makes up for another operand comes after what that is made of."""
    depth: dict[str, int] = {}
    levels: dict[str, int] = {}
    at = {p.node: p for p in places}
    for node in traced.graph.nodes:
        depth[node.name] = max((depth[source.name] for source in node.all_input_nodes), default=0)
        if node.name in at:
            levels[at[node.name].layer] = depth[node.name]
            depth[node.name] += 1
    nodes = {node.name: node for node in traced.graph.nodes}
    for p in places:
        if goal := goals.get(p.output):
            other = nodes[goal.own].all_input_nodes[goal.other]
            levels[p.layer] = max(levels[p.layer], depth[other.name])
    return levels
