"""Input sizes that pruning chooses from: a smaller input costs accuracy and saves time, as fewer channels do.

The same network, pruned to the same latency at several input sizes, is judged by one measure: the cross-entropy of
its outputs with the classes that the unpruned network predicts at its own size, on the same images. Pruning has
solved weights on these images, so it is cross-validated: each image is judged with weights solved on others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.preprocess import Preprocess
from calibration.split import Split
from calibration.transforms import at_size
from compress.errors import ConfigError, ModelError
from compress.graph.plan import WidthPlan
from compress.models.model import Model
from compress.parse import Count, Finite, NonNegative, Positive
from compress.progress import SILENT, Progress
from compress.prune.losses.store import in_batches
from compress.prune.planner import Origin
from compress.prune.repair.layerwise import repair
from compress.prune.surgery import cut
from compress.train.readout import readout, run

Solve = Callable[[Sequence[Tensor]], nn.Module]
"""Makes a network from batches of images (N, C, H, W)."""

SIZES = "sizes.json"
FOLDS = 3  # at the price of two repairs: each solves on two thirds of the images
JUDGED = f"cross-entropy, {FOLDS} folds"  # in the settings of stages: what was judged otherwise is made again
_NORMAL = 1.96  # the 97.5% quantile of the standard normal distribution


@dataclass(frozen=True)
class Above:
    """By how much a loss is above that of the size that was taken, image by image: mean and 95% interval (normal)."""

    value: Finite
    lo: Finite
    hi: Finite

    @classmethod
    def of(cls, losses: Tensor, taken: Tensor) -> Above:
        """
        Args:
            losses, taken: of the same images, (N,).

        >>> Above.of(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([1.0, 1.0, 1.0])).clear
        False
        """
        apart = losses - taken
        half = _NORMAL * float(apart.std(correction=0)) / max(1, len(apart) - 1) ** 0.5
        return cls(mean := float(apart.mean()), mean - half, mean + half)

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.lo > 0


@dataclass(frozen=True)
class SizeTried:
    """One input size.

    Attributes:
        size: side of the square input, in pixels.
        unpruned: cross-entropy of the unpruned network at this size with the classes that it predicts at its own, in
            nats an image.
        loss: cross-entropy of the pruned one, before the final fine-tuning; None where no plan at this size meets the
            budget.
        predicted_ms: by this size's latency table; None without one.
        above: how far ``loss`` is above that of the size that was taken; None for that one, and without a loss.
    """

    size: Count
    unpruned: NonNegative
    loss: NonNegative | None
    predicted_ms: Positive | None
    above: Above | None = None

    def __str__(self) -> str:
        """
        >>> str(SizeTried(192, 0.52, 0.73, 4.2))
        "192 pixels: cross-entropy 0.730 with the unpruned network's classes (0.520 without pruning)"
        """
        alone = f"{self.unpruned:.3f} without pruning"
        if self.loss is None:
            return f"{self.size} pixels: no plan meets the budget ({alone})"
        more = "" if self.above is None else "; {:+.3f} [{:+.3f}, {:+.3f}]".format(*astuple(self.above))
        return f"{self.size} pixels: cross-entropy {self.loss:.3f} with the unpruned network's classes ({alone}){more}"


@dataclass(frozen=True)
class SizesFile:
    """What ``sizes.json`` holds: every size that was tried, and the one that was taken."""

    tried: tuple[SizeTried, ...]
    taken: Count

    @classmethod
    def of(cls, unpruned: Mapping[int, Tensor], pruned: Mapping[int, Tensor], ms: Mapping[int, float]) -> SizesFile:
        """Take the size at which the pruned network has the least loss; of equals the smaller one.

        Args:
            unpruned, pruned: by size, the losses of the networks on the same images, (N,); of the pruned ones those
                that meet the budget.
            ms: by size, the latency that the pruned network is predicted to have, where that is known.

        >>> SizesFile.of({32: torch.ones(2), 24: torch.ones(2)}, {24: torch.ones(2)}, {}).taken
        24
        """
        taken = min(pruned, key=lambda size: (float(pruned[size].mean()), size))
        tried = []
        for size, alone in unpruned.items():
            losses = pruned.get(size)
            loss = None if losses is None else float(losses.mean())
            above = None if losses is None or size == taken else Above.of(losses, pruned[taken])
            tried.append(SizeTried(size, float(alone.mean()), loss, ms.get(size), above))
        return cls(tuple(tried), taken)

    @property
    def alike(self) -> tuple[int, ...]:
        """The sizes that the images do not tell from the one that was taken."""
        return tuple(one.size for one in self.tried if one.above is not None and not one.above.clear)


class Judge:
    """Measures the loss of networks at any input size: the cross-entropy with the classes of the unpruned network.

    The classes that it predicts stand for the true ones, which need not be known. The divergence from all its
    probabilities would not do: mirroring an image, which costs hardly any accuracy, raises it as much as pruning does.

    Args:
        model: the unpruned network.
        images: prepared for each network's size, in batches.

    Raises:
        ConfigError: the network is no classifier: other outputs of different sizes cannot be compared.
        ModelError: (also of the methods) outputs are not finite.
    """

    def __init__(self, model: Model, images: Split) -> None:
        self._images = images
        if not model.classes:
            raise ConfigError(
                "prune.sizes needs a classifier: outputs that are no classes cannot be compared between sizes",
                remedy="set data.input_size to the size that you want, and leave prune.sizes unset",
            )
        logits = _logits(model.net, model.preprocess, in_batches(images, model.preprocess))
        self._classes = [batch.argmax(1) for batch in logits]

    def losses(self, net: nn.Module, preprocess: Preprocess) -> Tensor:
        """The losses in nats, image by image (N,), of a network that has learned nothing from the images."""
        logits = _logits(net, preprocess, in_batches(self._images, preprocess))
        return torch.cat(_cross_entropy(logits, self._classes))

    def cross_validated(self, solve: Solve, preprocess: Preprocess, progress: Progress = SILENT) -> Tensor:
        """``losses``, where each image is judged by a network that was made from others (k-fold cross-validation).

        On images that weights were solved on, a network with many widths cut looks far better than it is.
        """
        images = in_batches(self._images, preprocess)
        folds, losses = min(FOLDS, len(images)), [torch.empty(0)] * len(images)
        for fold in progress.track(range(folds), f"judging {preprocess.sides[0]} pixels"):
            others = [batch for k, batch in enumerate(images) if k % folds != fold]
            net, part = solve(others or images), slice(fold, None, folds)  # of a single batch both
            losses[part] = _cross_entropy(_logits(net, preprocess, images[part]), self._classes[part])
        return torch.cat(losses)


@torch.no_grad()
def _logits(net: nn.Module, preprocess: Preprocess, images: Sequence[Tensor]) -> list[Tensor]:
    read = readout(net, preprocess)
    logits = [read(net(batch), len(batch)) for batch in images]
    if not all(bool(batch.isfinite().all()) for batch in logits):
        raise ModelError(
            f"the network's outputs are not finite at {preprocess.sides[0]} pixels",
            remedy="leave this size out of prune.sizes, or raise the budget",
        )
    return logits


def _cross_entropy(logits: Sequence[Tensor], classes: Sequence[Tensor]) -> list[Tensor]:
    pairs = zip(logits, classes, strict=True)
    return [F.cross_entropy(batch.double(), found, reduction="none") for batch, found in pairs]


def solved_on(origin: Origin, plan: WidthPlan, own: nn.Module, repairs: bool, images: Sequence[Tensor]) -> nn.Module:
    """What pruning makes of the network at an input size where these images are all that it has.

    A plan that took several rounds is solved in one.

    Args:
        origin: the network at that size.
        own: the unpruned network at its own size.
        repairs: whether weights are solved again.
        images: batches (N, C, H, W).
    """
    buffers = zip(origin.net.buffers(), own.buffers(), strict=True)
    measured = not all(torch.equal(mine, its) for mine, its in buffers)
    net = with_statistics(origin.net, images) if measured else origin.net
    if plan.after == plan.before:
        return net
    structure = origin.structure
    solved = repair(net, structure, plan.kept, plan.removed, images) if repairs else net
    return cut(solved, structure.coupling, plan.kept, structure.named(plan.removed))


def at_input_size(model: Model, size: int, sample: Split) -> tuple[Model, float]:
    """The network at another input size, and its loss.

    Objects look smaller in a smaller image, which changes what batch norms see (Touvron et al. 2019, arXiv:1906.06423,
    section 3). Their statistics are measured again where that brings the network nearer to the one at its own size.

    Args:
        size: side of the square input, in pixels.
        sample: images that statistics are measured on, and the loss on others of them.

    Raises:
        ConfigError: see ``Judge``.
        ModelError: the network does not run on inputs of that size.
    """
    preprocess = at_size(model.preprocess, size)
    run(model.net, torch.zeros(2, *preprocess.shape), preprocess)
    judge = Judge(model, sample)
    net, loss = model.net, float(judge.losses(model.net, preprocess).mean())
    measured = float(judge.cross_validated(partial(with_statistics, net), preprocess).mean())
    if measured < loss:
        net, loss = with_statistics(net, in_batches(sample, preprocess)), measured
    return replace(model.clone(net), preprocess=preprocess), loss


@torch.no_grad()
def with_statistics(net: nn.Module, images: Sequence[Tensor]) -> nn.Module:
    """A copy of ``net`` whose batch norms have the mean and variance of these images, averaged over the batches.

    No batch has a single image, which has no variance where maps have one position; of one image in all, the copy
    keeps the statistics that it has.
    """
    together = torch.cat(list(images))
    images = together.tensor_split(max(1, len(together) // max(2, len(images[0]))))
    new = copy.deepcopy(net)
    norms = [m for m in new.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    for batch in images if len(together) > 1 else ():
        new(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return new.eval()
