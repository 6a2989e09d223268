"""What a training makes smaller, and how a network is measured on held-out images.

``fit`` takes an objective; another way to train is another class with the same three members.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.loader import batches
from calibration.preprocess import Preprocess
from calibration.split import Split, check_classes
from calibration.transforms import eval_transform
from compress.config import TrainConfig
from compress.errors import ModelError
from compress.frontend.export import in_mode
from compress.train.distill import relative_error, soft_targets
from compress.train.evaluate import evaluate
from compress.train.readout import device_of, readout


class Objective(Protocol):
    """A loss, and the measure that chooses the best epoch.

    Attributes:
        classes: of the labels.
        measure: ``top1`` (more is better) or ``error`` (less is better), as ``history.Epoch`` names them.
        note: what a user should know about it; empty where there is nothing.
    """

    classes: int
    measure: Literal["top1", "error"]
    note: str

    def loss(self, output: Any, images: Tensor, targets: Tensor) -> Tensor:
        """The loss of the output for ``images`` (N, C, H, W); targets are labels (N,) or shares (N, classes)."""
        ...

    def total(self, net: nn.Module, held_out: Split, workers: int) -> float:
        """The measure, summed over the images of a split."""
        ...


class Labels:
    """Cross-entropy with the labels, and with a teacher's outputs where ``distill`` is above 0.

    Raises:
        ModelError: the network or the teacher is no classifier.
        DataError: its classes are not those of the images.
    """

    measure: Literal["top1", "error"] = "top1"

    def __init__(
        self, net: nn.Module, teacher: nn.Module | None, train: Split, preprocess: Preprocess, config: TrainConfig
    ) -> None:
        self._read, self._preprocess, self._config = readout(net, preprocess), preprocess, config
        self.classes = self._read.classes
        check_classes(train, self.classes)
        self._teacher = teacher if config.distill > 0 else None
        if self._teacher is not None:
            self._read_teacher = readout(self._teacher, preprocess)
            check_classes(train, self._read_teacher.classes)
        self.note = ""
        if self._read.probabilities:
            self.note = "the network returns probabilities: it is trained on their logarithms (NLL)"

    def loss(self, output: Any, images: Tensor, targets: Tensor) -> Tensor:
        scores = self._read(output, len(images))
        loss = F.cross_entropy(scores, targets, label_smoothing=self._config.label_smoothing)
        if self._teacher is None:
            return loss
        with torch.no_grad():
            guide = self._read_teacher(self._teacher(images), len(images))
        share = self._config.distill
        return (1 - share) * loss + share * soft_targets(scores, guide, self._config.temperature)

    def total(self, net: nn.Module, held_out: Split, workers: int) -> float:
        return float(evaluate(net, held_out, self._preprocess, workers=workers).correct.sum())


class Outputs:
    """The error of all outputs against a teacher's (``relative_error``): no labels are needed.

    Args:
        teacher: on the device that the network is trained on, in eval mode.
    """

    measure: Literal["top1", "error"] = "error"
    note = ""

    def __init__(self, teacher: nn.Module, train: Split, preprocess: Preprocess) -> None:
        self.classes = int(max(train.labels, default=0)) + 1  # of targets that are not looked at
        self._teacher, self._preprocess = teacher, preprocess

    def loss(self, output: Any, images: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self._teacher(images)
        return relative_error(output, wanted)

    @torch.no_grad()
    def total(self, net: nn.Module, held_out: Split, workers: int) -> float:
        device, found = device_of(net), 0.0
        with in_mode(net, training=False):
            for x, y in batches(held_out, eval_transform(self._preprocess), batch_size=64, workers=workers):
                error = self.loss(net(x.to(device)), x.to(device), y)
                if not error.isfinite():
                    raise ModelError(f"the network's outputs are not finite on {held_out.name} images")
                found += len(x) * float(error)
        return found
