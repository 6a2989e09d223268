"""Measure the accuracy of a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calibration.loader import batches
from calibration.preprocess import Preprocess
from calibration.split import Split, check_classes
from calibration.transforms import eval_transform
from compress.errors import ModelError
from compress.models.checkpoint import classifier
from compress.progress import SILENT, Progress


@dataclass(frozen=True, eq=False)
class Accuracy:
    """Accuracy over the images of a split.

    Attributes:
        top1, top5: shares of ``count``, 0 to 1.
        count: images.
        correct: (count,) bool: top-1 right, image by image, for paired comparisons.
    """

    top1: float
    top5: float
    count: int
    correct: NDArray[np.bool_]


@torch.no_grad()  # not inference_mode: tensors that a module caches here must stay usable in training
def evaluate(
    net: nn.Module,
    split: Split,
    preprocess: Preprocess,
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: Progress = SILENT,
) -> Accuracy:
    """Top-1 and top-5 accuracy in eval mode, on the device where ``net`` is; its mode is restored.

    Raises:
        ModelError: the network has other outputs than one row of logits an image, or they are not finite.
        DataError: the outputs and the classes of ``split`` disagree, or an image cannot be read.
    """
    device = device_of(net)
    ranks = []
    loader = batches(split, eval_transform(preprocess), batch_size, workers=workers)
    with _eval_mode(net):
        for x, y in progress.track(loader, f"evaluate on {split.name}"):
            scores = logits(net(x.to(device)), len(x))
            check_classes(split, scores.shape[1])
            if not scores.isfinite().all():
                raise ModelError(
                    f"the network's outputs are not finite on {split.name} images",
                    remedy="its weights or BN statistics are broken: train it again with a lower rate",
                )
            ranks.append(rank_of_label(scores.cpu(), y))
    rank = torch.cat(ranks).numpy() if ranks else np.empty(0, dtype=np.int64)
    top1, top5 = (float((rank < k).mean()) if len(rank) else 0.0 for k in (1, 5))
    return Accuracy(top1, top5, len(rank), rank == 0)


def rank_of_label(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the right one: 0 is top-1. Ties count as ``argmax`` breaks them, first index first.

    >>> rank_of_label(torch.tensor([[0.1, 0.7, 0.7]]), torch.tensor([2]))
    tensor([1])
    """
    own = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1]) < labels[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(1)


def logits(output: object, images: int) -> Tensor:
    """What a network returned for some images, as (images, classes).

    Raises:
        ModelError: it is several tensors, or not one row an image.
    """
    if not isinstance(output, Tensor):
        what = f"a {type(output).__name__} of {len(output)}" if hasattr(output, "__len__") else type(output).__name__
        raise ModelError(
            f"the network returns {what}, not one tensor of logits",
            remedy="wrap it in a factory that returns the classifier's output alone",
        )
    if output.ndim != 2 or len(output) != images:
        raise ModelError(
            f"the network turns {images} images into {tuple(output.shape)}, not (images, classes)",
            remedy="training and evaluation need a classifier",
        )
    return output


def output_count(net: nn.Module, preprocess: Preprocess) -> int:
    """How many logits the network has, by running it on one black image.

    Raises:
        ModelError: it is no classifier of such images.
    """
    return logits(_on_black(net, preprocess), 1).shape[1]


def class_count(net: nn.Module, preprocess: Preprocess) -> int | None:
    """How many classes a classifier tells apart; None for a backbone, whose outputs are features or several tensors.

    Raises:
        ModelError: the network does not run on such images.
    """
    output, head = _on_black(net, preprocess), classifier(net)
    if head is None or not isinstance(output, Tensor) or output.shape != (1, head[1].out_features):
        return None
    return head[1].out_features


@torch.no_grad()
def _on_black(net: nn.Module, preprocess: Preprocess) -> object:
    """What the network returns for one black image."""
    with _eval_mode(net):
        try:
            return net(torch.zeros(1, *preprocess.shape, device=device_of(net)))
        except RuntimeError as error:
            raise ModelError(
                f"the network does not run on an input of {preprocess.shape}: {str(error).splitlines()[0]}",
                remedy="check data.input_size and data.channels against the network",
            ) from None


def device_of(net: nn.Module) -> torch.device:
    """Where the network's parameters are; the CPU where it has none."""
    parameter = next(net.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def _eval_mode(net: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:  # one by one: layers may be frozen in eval mode inside a training network
            module.training = mode
