"""Input sizes that pruning chooses from: a smaller input costs accuracy and saves time, as fewer channels do.

The same network, pruned to the same latency at several input sizes, is judged by one measure: the divergence of its
outputs from those of the unpruned network at its own size, on the same images.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor, nn

from calibration.preprocess import Preprocess
from calibration.split import Split
from calibration.transforms import at_size
from compress.errors import ConfigError
from compress.models.model import Model
from compress.parse import Count, Finite, NonNegative, Positive
from compress.prune.losses.curves import divergence
from compress.prune.losses.store import in_batches
from compress.train.readout import readout, run

SIZES = "sizes.json"
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
        unpruned: divergence of the unpruned network at this size, in nats an image.
        loss: of the pruned one; None where no plan at this size meets the budget.
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
        >>> str(SizeTried(192, 0.05, 0.31, 4.2))
        '192 pixels: 0.310 nats from the unpruned network at its own size (0.050 without pruning)'
        """
        alone = f"{self.unpruned:.3f} without pruning"
        if self.loss is None:
            return f"{self.size} pixels: no plan meets the budget ({alone})"
        more = "" if self.above is None else "; {:+.3f} [{:+.3f}, {:+.3f}]".format(*astuple(self.above))
        return f"{self.size} pixels: {self.loss:.3f} nats from the unpruned network at its own size ({alone}){more}"


@dataclass(frozen=True)
class SizesFile:
    """What ``sizes.json`` holds: every size that was tried, and the one that was taken."""

    tried: tuple[SizeTried, ...]
    taken: Count


class Judge:
    """Measures how far a network at any input size is from the unpruned one at its own.

    Args:
        model: the unpruned network.
        unseen: images that neither repair nor the losses of widths have seen. On images that weights were solved on, a
            network with many widths cut looks far better than it is.

    Raises:
        ConfigError: the network is no classifier: other outputs of different sizes cannot be compared.
    """

    def __init__(self, model: Model, unseen: Split) -> None:
        self._unseen = unseen
        if not model.classes:
            raise ConfigError(
                "prune.sizes needs a classifier: outputs that are no classes cannot be compared between sizes",
                remedy="set data.input_size to the size that you want, and leave prune.sizes unset",
            )
        self._reference = self._outputs(model.net, model.preprocess)

    def losses(self, net: nn.Module, preprocess: Preprocess) -> Tensor:
        """Kullback-Leibler divergence from the unpruned network's prediction, in nats, image by image (N,)."""
        pairs = zip(self._reference, self._outputs(net, preprocess), strict=True)
        images = ((a[None], b[None]) for reference, output in pairs for a, b in zip(reference, output, strict=True))
        return torch.tensor([divergence(a, b, logits=True) for a, b in images], dtype=torch.float64)

    def loss(self, net: nn.Module, preprocess: Preprocess) -> float:
        """The mean of ``losses``."""
        return mean_loss(self.losses(net, preprocess))

    @torch.no_grad()
    def _outputs(self, net: nn.Module, preprocess: Preprocess) -> list[Tensor]:
        read = readout(net, preprocess)
        return [read(net(batch), len(batch)) for batch in in_batches(self._unseen, preprocess)]


def mean_loss(losses: Tensor) -> float:
    """Rounding can make a divergence negative."""
    return max(0.0, float(losses.mean()))


def at_input_size(model: Model, size: int, sample: Split, judge: Judge) -> tuple[Model, float]:
    """The network at another input size, and its loss.

    Objects look smaller in a smaller image, which changes what batch norms see (Touvron et al. 2019, arXiv:1906.06423,
    section 3). Their statistics are measured again where that brings the network nearer to the one at its own size.

    Args:
        size: side of the square input, in pixels.
        sample: images that statistics are measured on.

    Raises:
        ModelError: the network does not run on inputs of that size.
    """
    preprocess = at_size(model.preprocess, size)
    run(model.net, torch.zeros(2, *preprocess.shape), preprocess)
    kept = model.clone()
    loss = judge.loss(kept.net, preprocess)
    anew = with_statistics(kept.net, in_batches(sample, preprocess))
    if (its := judge.loss(anew, preprocess)) < loss:
        kept, loss = model.clone(anew), its
    return Model(kept.net, model.arch, preprocess, model.classes, model.args), loss


@torch.no_grad()
def with_statistics(net: nn.Module, images: Sequence[Tensor]) -> nn.Module:
    """A copy of ``net`` whose batch norms have the mean and variance of these images, averaged over the batches."""
    new = copy.deepcopy(net)
    norms = [m for m in new.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    for batch in images:
        new(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return new.eval()
