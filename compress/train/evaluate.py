"""Measure the accuracy of a network."""

from __future__ import annotations

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
from compress.frontend.export import in_mode
from compress.graph.head import head_of
from compress.progress import SILENT, Progress
from compress.train.readout import device_of, readout


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

    A single output is the score of the second of two classes: a logit, or a probability from 0 to 1.

    Raises:
        ModelError: the network has other outputs than one row of logits an image, or they are not finite.
        DataError: the outputs and the classes of ``split`` disagree, or an image cannot be read.
    """
    device, read = device_of(net), readout(net, preprocess)
    check_classes(split, read.classes)
    ranks = []
    loader = batches(split, eval_transform(preprocess), batch_size, workers=workers)
    with in_mode(net, training=False):
        for x, y in progress.track(loader, f"evaluate on {split.name}"):
            scores = read(net(x.to(device)), len(x))
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


def class_count(net: nn.Module, preprocess: Preprocess) -> int | None:
    """How many classes a classifier tells apart (two if it has one output); None for a backbone, see ``head_of``.

    Raises:
        ModelError: the network does not run on such images.
    """
    return None if head_of(net, preprocess.shape) is None else readout(net, preprocess).classes
