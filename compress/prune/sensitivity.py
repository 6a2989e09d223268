"""What pruning costs: the loss as a function of each group's width, and of each removable block's removal.

Every cell is measured: one group is cut to one width, or one block is removed, the layers that read it are repaired,
and the network is run from there on over images that the repair has not seen. The loss is the divergence of the
outputs from the original's, so that no labels are needed.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from compress.progress import SILENT, Progress
from compress.prune.affine import Affine, read, write
from compress.prune.brain_surgeon import Path, Reader, remove
from compress.prune.coupling import Group
from compress.prune.gates import bypassed, gated
from compress.prune.importance import Scores
from compress.prune.moments import Moments, Sampler, naming
from compress.prune.reconstruct import ROWS, repair
from compress.prune.structure import Structure
from compress.prune.walk import Values

See = Callable[[int, fx.Node, tuple[Any, ...], Any], None]

_SLICE = 8  # images whose gradients are in memory at once


@dataclass(frozen=True)
class Curve:
    """The loss of one group by its width.

    Attributes:
        units: widths that were measured, ascending; the last one is all, at a loss of 0.
        loss: at each, not rising with the width.
        order: all units, best first: of w units kept, the first w stay.
    """

    units: tuple[int, ...]
    loss: tuple[float, ...]
    order: tuple[int, ...]

    def at(self, units: Sequence[int]) -> list[float]:
        """The loss at any widths, linear between the measured ones."""
        found: list[float] = np.interp(units, self.units, self.loss).tolist()
        return found

    def kept(self, units: int) -> tuple[int, ...]:
        """Indices of the units that stay, ascending."""
        return tuple(sorted(self.order[:units]))


def divergence(reference: Any, output: Any, *, logits: bool) -> float:
    """Summed over images: KL(softmax of reference || softmax of output) for logits (N, classes), in nats; for any other
    outputs their squared error, relative to the reference's mean square."""
    if logits:
        p, q = reference.log_softmax(1), output.log_softmax(1)
        return float(F.kl_div(q, p, reduction="sum", log_target=True))
    pairs = zip(pytree.tree_leaves(reference), pytree.tree_leaves(output), strict=True)
    tensors = [(a, b) for a, b in pairs if isinstance(a, Tensor)]
    tiny = torch.finfo(torch.float32).tiny
    return sum(len(a) * float((a - b).square().mean() / a.square().mean().clamp(min=tiny)) for a, b in tensors)


def are_logits(output: Any) -> bool:
    """Whether an output is one row of at least two logits an image, as far as its shape tells."""
    return isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] > 1


@dataclass(frozen=True)
class Images:
    """Batches (N, C, H, W): those that weights are solved on, and others that the loss is measured on."""

    solve: Sequence[Tensor]
    judge: Sequence[Tensor]


class Sensitivity:
    """Measures cells of one network, each once.

    Args:
        net: in eval mode, on the CPU.
        structure: of ``net``.
        classifier: its output is one row of logits an image.
        scores: the higher, the longer a unit stays; by group. Default: the surgeon decides.
    """

    def __init__(
        self,
        net: nn.Module,
        structure: Structure,
        images: Images,
        *,
        classifier: bool = True,
        scores: Scores | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self._net, self._structure = net, structure
        self._images, self._scores, self._progress = images, scores, progress
        self._walk = structure.walk()
        self._places = {p.layer: p for p in structure.affines}
        self._importance = output_importance(net, self._places.values(), images.judge, classifier=classifier)
        ends = (self._walk.finish(0, net, values) for values in self._walk.start(images.judge))
        self._reference = list(ends)
        self._logits = classifier and are_logits(self._reference[0])

    def curves(self, widths: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Curve]]:
        """Of the groups named, at the widths asked for, one after the other."""
        changed = copy.deepcopy(self._net)
        for group, path, moments, judged in self._paths(widths):
            places = self._readers(group)
            seen = {place.layer: (moments[place.layer].mean, self._covariance(place, moments)) for place in places}
            points = {group.units: 0.0}
            for width, weights in path.weights.items():
                for place, a in zip(places, weights, strict=True):
                    self._replace(changed, place, a.double(), *seen[place.layer])
                gate = torch.zeros(group.units)
                gate[list(path.order[:width])] = 1
                with gated(changed, self._structure.coupling, {group.name: gate}):  # readers without a map as well
                    points[width] = self._loss(self._first(group), changed, judged)
            for place in places:
                for name in filter(None, (place.layer, place.norm)):
                    changed.get_submodule(name).load_state_dict(self._net.get_submodule(name).state_dict())
            units = sorted(points)
            loss = np.maximum.accumulate([points[width] for width in reversed(units)])[::-1]
            yield group.name, Curve(tuple(units), tuple(loss.tolist()), path.order)

    def removals(self) -> dict[str, float]:
        """Of every removable segment: the loss without it, when the layer before makes up for it."""
        ahead = defaultdict(list)  # by the step before: where a removal's repair begins
        for segment in self._structure.segments:
            if segment.removable:
                ahead[max(0, self._walk.step_of(segment.result) - 1)].append(segment)
        values, judged = self._walk.start(self._images.solve), self._walk.start(self._images.judge)
        found = {}
        for step in self._progress.track(range(max(ahead, default=-1) + 1), "removing blocks"):
            for segment in ahead[step]:
                near = range(step, min(self._walk.step_of(segment.result) + 2, len(self._walk)))
                removed, images = [segment.name], self._images.solve
                net = repair(self._net, self._structure, {}, removed, images, steps=near, values=values)
                with bypassed(net, [segment]):
                    found[segment.name] = self._loss(step, net, judged)
            for batches in (values, judged):
                self._advance(step, batches)
        return found

    def _loss(self, first: int, net: nn.Module, judged: Sequence[Values]) -> float:
        """Of a network that is changed from a step on; ``judged`` are the values before that step."""
        if first == len(self._walk):
            return 0.0
        total = sum(
            divergence(reference, self._walk.finish(first, net, values), logits=self._logits)
            for reference, values in zip(self._reference, judged, strict=True)
        )
        return total / sum(map(len, self._images.judge))

    def _replace(self, changed: nn.Module, place: Affine, a: Tensor, x: Tensor, covariance: Tensor) -> None:
        """Other weights for a layer that reads x (inputs,) on average; its mean output stays."""
        old, b = read(self._net, place)
        mean, variance = a.T @ x, (a * (covariance @ a)).sum(0)
        write(changed, place, a, b + old.T @ x - mean, mean, variance)

    def _covariance(self, place: Affine, moments: Mapping[str, Moments]) -> Tensor:
        """Of what a layer reads; about zero, where the layer has no constant to make up for a mean."""
        seen = moments[place.layer]
        return seen.covariance() if place.shifts else seen.covariance() + torch.outer(seen.mean, seen.mean)

    def _readers(self, group: Group) -> list[Affine]:
        return [self._places[slot.layer] for slot in group.readers if slot.layer in self._places]

    def _first(self, group: Group) -> int:
        """The step of the first layer that reads a group; past the last where none does."""
        return min((self._walk.step_calling(slot.layer) for slot in group.readers), default=len(self._walk))

    def _seen(self, group: Group, moments: Mapping[str, Moments]) -> bool:
        """Whether the walk has passed all readers of a group whose weights are solved anew."""
        return all(place.layer in moments for place in self._readers(group))

    def _advance(self, step: int, batches: list[Values], see: See | None = None) -> None:
        """Run a step on each batch, in place: what one held before is let go before the next one runs."""
        for index, values in enumerate(batches):
            batches[index] = self._walk.run(step, self._net, values, see and partial(see, index))

    def _paths(
        self, widths: Mapping[str, Sequence[int]]
    ) -> Iterator[tuple[Group, Path, Mapping[str, Moments], Sequence[Values]]]:
        """Group by group, as soon as the walk has passed all of its readers; and what the judges are there at first.

        Memory holds the values of the judges at the first reader of each group that waits, not at every step.
        """
        sampler = Sampler(ROWS, sum(map(len, self._images.solve)))
        moments: dict[str, Moments] = {}
        values, judged = self._walk.start(self._images.solve), self._walk.start(self._images.judge)
        kept: dict[int, list[Values]] = {len(self._walk): []}
        waiting = [group for group in self._structure.coupling if group.name in widths]
        for step in self._progress.track(range(len(self._walk)), "measuring widths"):
            places = [p for p in self._places.values() if self._walk.step_of(p.node) == step]
            here = {p.node: (p.layer, Moments()) for p in places}
            moments.update(here.values())

            def see(
                index: int,
                node: fx.Node,
                args: tuple[Any, ...],
                value: Any,
                into: Mapping[str, tuple[str, Moments]] = here,
            ) -> None:
                if node.name in into:
                    layer, its_moments = into[node.name]
                    its_moments.add(sampler.inputs(self._net.get_submodule(layer), args[0], value, index))

            if any(self._first(group) == step for group in waiting):
                kept[step] = list(judged)
            self._advance(step, values, see)
            self._advance(step, judged)
            for group in [g for g in waiting if self._first(g) in kept and self._seen(g, moments)]:
                waiting.remove(group)
                yield group, self._path(group, widths[group.name], moments), moments, kept[self._first(group)]
            needed = {p.layer for group in waiting for p in self._readers(group)}
            moments = {layer: those for layer, those in moments.items() if layer in needed}
            still = {self._first(group) for group in waiting}
            kept = {at: those for at, those in kept.items() if at in still or at == len(self._walk)}

    def _path(self, group: Group, widths: Collection[int], moments: Mapping[str, Moments]) -> Path:
        below = [width for width in widths if width < group.units]
        readers = []
        for slot in group.readers:
            if slot.layer in self._places:
                weights, _ = read(self._net, self._places[slot.layer])
                module = self._net.get_submodule(slot.layer)
                assert isinstance(module.weight, Tensor)
                taps = torch.arange(module.weight[0, 0].numel())
                rows = torch.tensor(slot.channels)[:, :, None] * len(taps) + taps
                importance = self._importance[slot.layer]
                covariance = self._covariance(self._places[slot.layer], moments)
                readers.append(Reader(weights, covariance, importance, rows.flatten(1)))
        order = None if self._scores is None else np.argsort(-self._scores[group.name], kind="stable").tolist()
        with naming("', '".join(slot.layer for slot in group.readers)):
            return remove(readers, group.units, below, order=order)


def output_importance(
    net: nn.Module, places: Collection[Affine], images: Sequence[Tensor], *, classifier: bool = True
) -> dict[str, Tensor]:
    """By layer: E[(dL/dy_o)^2] over images and positions of each output o of the map, (outputs,).

    L is the negative log-likelihood of a label that is drawn from the network's own prediction, which makes this the
    diagonal of the Fisher information (Martens 2020, arXiv:1412.1193, section 5); for other outputs than logits, a
    random projection of them.
    """
    net = copy.deepcopy(net).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    taps: dict[str, Tensor] = {}
    handles = []
    for place in places:

        def add_zero(module: nn.Module, inputs: Any, output: Tensor, name: str = place.layer) -> Tensor:
            taps[name] = torch.zeros_like(output, requires_grad=True)
            return output + taps[name]

        handles.append(net.get_submodule(place.norm or place.layer).register_forward_hook(add_zero))
    sums: dict[str, Tensor] = {}
    count = 0
    for x in (batch[start : start + _SLICE] for batch in images for start in range(0, len(batch), _SLICE)):
        with torch.enable_grad():
            output = net(x)
            if classifier and are_logits(output):
                labels = torch.multinomial(output.detach().softmax(1), 1, generator=generator).flatten()
                loss = F.cross_entropy(output, labels, reduction="sum")
            else:
                leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
                projected = [(leaf * torch.randn(leaf.shape, generator=generator)).sum() for leaf in leaves]
                loss = torch.stack(projected).sum()
            slopes = torch.autograd.grad(loss, list(taps.values()), allow_unused=True) if taps else ()
        for name, found in zip(taps, slopes, strict=True):
            slope = torch.zeros_like(taps[name]) if found is None else found
            square = slope.square().flatten(2).mean(2).sum(0) if slope.dim() > 2 else slope.square().sum(0)
            sums[name] = sums.get(name, torch.zeros_like(square)) + square
        count += len(x)
    for handle in handles:
        handle.remove()
    return {name: total / count for name, total in sums.items()}
