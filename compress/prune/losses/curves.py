"""Measure what pruning costs: the loss as a function of each group's width, and of removing each removable block.

Every cell is measured: one group is cut to one width, or one block is removed, the layers that read it are repaired,
and the network is run from there on over images that the repair has not seen. The loss is the divergence of the
outputs from the original's, so that no labels are needed.
"""

from __future__ import annotations

import copy
import math
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

from compress.errors import ModelError
from compress.graph.executor import Executor, Values
from compress.graph.groups import Group, Slot
from compress.graph.linear_bn import LinearBN, read, write
from compress.graph.structure import Structure
from compress.parse import NonNegative
from compress.progress import SILENT, Progress
from compress.prune.importance.masks import bypassed, gated
from compress.prune.importance.obs import Path, Reader, remove
from compress.prune.importance.scores import Scores
from compress.prune.repair.layerwise import ROWS, repair
from compress.prune.repair.statistics import Moments, Sampler, naming

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
    loss: tuple[NonNegative, ...]
    order: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.units or len(self.loss) != len(self.units) or list(self.units) != sorted(set(self.units)):
            raise ValueError("a curve needs a loss for each of its ascending widths")
        if sorted(self.order) != list(range(self.units[-1])):
            raise ValueError(f"the order of a curve names each of its {self.units[-1]} units once")

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


def _finite(output: Any) -> bool:
    return all(bool(leaf.isfinite().all()) for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))


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
        self._executor = structure.executor()
        self._places = {p.layer: p for p in structure.linear_bns}
        self._reference = [self._executor.finish(0, net, values) for values in self._executor.start(images.judge)]
        for batch, reference in zip(images.judge, self._reference, strict=True):
            if not _finite(reference):
                layer = self._executor.first_non_finite(net, batch)
                raise ModelError(
                    f"the output of '{layer}' has NaN or infinite values on an image",
                    remedy="its weights or statistics are broken: load another checkpoint, or train again",
                )
        self._importance = output_importance(
            net, self._executor, self._places.values(), images.judge, classifier=classifier
        )
        self._logits = classifier and are_logits(self._reference[0])

    def curves(self, widths: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Curve]]:
        """Of the groups named, at the widths asked for, one after the other."""
        changed = copy.deepcopy(self._net)
        for group, path, means, judged in self._paths(widths):
            places = self._readers(group)
            points = {group.units: 0.0}
            for width, weights in path.weights.items():
                for place, a, mean in zip(places, weights, means, strict=True):
                    self._replace(changed, place, a.double(), mean)
                gate = torch.zeros(group.units)
                gate[list(path.order[:width])] = 1
                with gated(changed, self._structure.coupling, {group.name: gate}):  # readers without a map as well
                    points[width] = self._loss(group.name, self._first(group), changed, judged)
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
                ahead[max(0, self._executor.step_of(segment.result) - 1)].append(segment)
        values, judged = self._executor.start(self._images.solve), self._executor.start(self._images.judge)
        found = {}
        for step in self._progress.track(range(max(ahead, default=-1) + 1), "removing blocks"):
            for segment in ahead[step]:
                near = range(step, min(self._executor.step_of(segment.result) + 2, len(self._executor)))
                removed, images = [segment.name], self._images.solve
                net = repair(self._net, self._structure, {}, removed, images, steps=near, values=values)
                with bypassed(net, [segment]):
                    found[segment.name] = self._loss(segment.name, step, net, judged)
            for batches in (values, judged):
                self._advance(step, batches)
        return found

    def _loss(self, what: str, first: int, net: nn.Module, judged: Sequence[Values]) -> float:
        """Of a network that is changed from a step on; ``judged`` are the values before that step.

        Raises:
            ModelError: it is not finite; says that ``what`` was cut.
        """
        if first == len(self._executor):
            return 0.0
        total = sum(
            divergence(reference, self._executor.finish(first, net, values), logits=self._logits)
            for reference, values in zip(self._reference, judged, strict=True)
        )
        if not math.isfinite(total):
            raise ModelError(
                f"without channels or layers of '{what}' the network's outputs are not finite",
                remedy=f"set prune.keep to leave out '{what}', or evaluate the float network: it may have diverged",
            )
        return max(0.0, total / sum(map(len, self._images.judge)))  # rounding can make it negative

    def _replace(self, changed: nn.Module, place: LinearBN, a: Tensor, x: Tensor) -> None:
        """Other weights for a layer that reads x (inputs,) on average; its mean output stays."""
        old, b = read(self._net, place)
        mean = a.T @ x
        with naming(place.layer):
            write(changed, place, a, b + old.T @ x - mean, mean, torch.ones_like(mean))

    def _readers(self, group: Group) -> list[LinearBN]:
        return [self._places[slot.layer] for slot in group.readers if slot.layer in self._places]

    def _first(self, group: Group) -> int:
        """The step of the first layer that reads a group; past the last where none does."""
        return min((self._executor.step_calling(slot.layer) for slot in group.readers), default=len(self._executor))

    def _seen(self, group: Group, moments: Mapping[str, Moments]) -> bool:
        """Whether the executor has passed all readers of a group whose weights are solved anew."""
        return all(place.layer in moments for place in self._readers(group))

    def _advance(self, step: int, batches: list[Values], see: See | None = None) -> None:
        """Run a step on each batch, in place: what one held before is let go before the next one runs."""
        for index, values in enumerate(batches):
            batches[index] = self._executor.run(step, self._net, values, see and partial(see, index))

    def _paths(
        self, widths: Mapping[str, Sequence[int]]
    ) -> Iterator[tuple[Group, Path, Sequence[Tensor], Sequence[Values]]]:
        """Group by group, as soon as the executor has passed all of its readers: which units go, what its readers read
        on average, and what the judges are there at first.

        Memory holds the values of the judges at the first reader of each group that waits, not at every step.
        """
        sampler = Sampler(ROWS, sum(map(len, self._images.solve)))
        moments: dict[str, Moments] = {}
        values, judged = self._executor.start(self._images.solve), self._executor.start(self._images.judge)
        kept: dict[int, list[Values]] = {len(self._executor): []}
        waiting = [group for group in self._structure.coupling if group.name in widths]
        for step in self._progress.track(range(len(self._executor)), "measuring widths"):
            places = [p for group in waiting for p in self._readers(group) if self._executor.step_of(p.node) == step]
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
            here.clear()  # otherwise its statistics would be kept for another step
            for group in [g for g in waiting if self._first(g) in kept and self._seen(g, moments)]:
                path = self._path(group, widths[group.name], moments)
                means = [moments[place.layer].mean for place in self._readers(group)]
                waiting.remove(group)
                needed = {p.layer for other in waiting for p in self._readers(other)}
                moments = {layer: those for layer, those in moments.items() if layer in needed}
                yield group, path, means, kept[self._first(group)]
            still = {self._first(group) for group in waiting}
            kept = {at: those for at, those in kept.items() if at in still or at == len(self._executor)}

    def _path(self, group: Group, widths: Collection[int], moments: Mapping[str, Moments]) -> Path:
        below = [width for width in widths if width < group.units]
        slots = [slot for slot in group.readers if slot.layer in self._places]
        readers = (self._reader(slot, moments[slot.layer]) for slot in slots)
        order = None if self._scores is None else np.argsort(-self._scores[group.name], kind="stable").tolist()
        with naming("', '".join(slot.layer for slot in group.readers)):
            return remove(readers, group.units, below, order=order)

    def _reader(self, slot: Slot, moments: Moments) -> Reader:
        place = self._places[slot.layer]
        weights, _ = read(self._net, place)
        module = self._net.get_submodule(slot.layer)
        assert isinstance(module.weight, Tensor)
        taps = torch.arange(module.weight[0, 0].numel())
        rows = torch.tensor(slot.channels)[:, :, None] * len(taps) + taps
        covariance = moments.second(about_zero=not place.shifts)  # where no constant can make up for a mean
        return Reader(weights, covariance, self._importance[slot.layer] * moments.unit**2, rows.flatten(1))


def output_importance(
    net: nn.Module,
    executor: Executor,
    places: Collection[LinearBN],
    images: Sequence[Tensor],
    *,
    classifier: bool = True,
) -> dict[str, Tensor]:
    """By layer: E[(dL/dy_o)^2] over images and positions of each output o of the map, (outputs,).

    L is the negative log-likelihood of a label that is drawn from the network's own prediction, which makes this the
    diagonal of the Fisher information (Martens 2020, arXiv:1412.1193, section 5); for other outputs than logits, a
    random projection of them. Gradients go back step by step: memory holds the values between steps, and those of one.
    """
    generator = torch.Generator().manual_seed(0)
    layers = {place.output: place.layer for place in places}
    sums = {place.layer: torch.zeros(len(read(net, place)[1]), dtype=torch.float64) for place in places}

    def add(layer: str, slope: Tensor) -> None:
        sums[layer] += slope.square().flatten(2).mean(2).sum(0) if slope.dim() > 2 else slope.square().sum(0)

    def see(node: fx.Node, args: tuple[Any, ...], value: Any) -> None:
        if node.name in layers and value.requires_grad:
            value.register_hook(partial(add, layers[node.name]))

    def surprise(after: Values) -> Tensor:
        (output,) = after.values()
        if classifier and are_logits(output):
            labels = torch.multinomial(output.detach().softmax(1), 1, generator=generator).flatten()
            return F.cross_entropy(output, labels, reduction="sum")
        leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        return torch.stack([(leaf * torch.randn(leaf.shape, generator=generator)).sum() for leaf in leaves]).sum()

    for x in (batch[start : start + _SLICE] for batch in images for start in range(0, len(batch), _SLICE)):
        before = executor.start([x])
        for step in range(len(executor) - 1):
            before.append(executor.run(step, net, before[-1]))
        loss = surprise
        for step in reversed(range(len(executor))):
            slopes = executor.slopes(step, net, before.pop(), loss, see)
            loss = partial(_along, slopes)
    return {name: total.float() / sum(map(len, images)) for name, total in sums.items()}


def _along(slopes: Values, values: Values) -> Tensor:
    """What has the slopes given by the values named."""
    return torch.stack([(values[name] * slope).sum() for name, slope in slopes.items()] or [torch.zeros(())]).sum()
