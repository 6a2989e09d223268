"""Fit a new classifier on the features of a trained network, before anything is trained.

A classifier that starts from noise sends large gradients back, which distort the features that the network was loaded
for (Kumar et al. 2022, arXiv:2202.10054: first a linear probe, then fine-tuning). Fitting it takes one pass over the
training images.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from calibration.loader import batches
from calibration.preprocess import Preprocess
from calibration.sampler import calibration_sample
from calibration.split import Split
from calibration.transforms import eval_transform
from compress.errors import ModelError
from compress.progress import SILENT, Progress

MOST_IMAGES = 10_000
_PENALTY = 0.01  # per image, on the squared weights of features of unit variance
_STEPS = 200
_BATCH = 32


def fit_classifier(
    net: nn.Module,
    head: nn.Linear,
    train: Split,
    preprocess: Preprocess,
    *,
    device: torch.device,
    seed: int = 0,
    workers: int = 0,
    progress: Progress = SILENT,
) -> int:
    """Solve a multinomial logistic regression on what ``head`` reads, in place.

    Returns the number of images; 0 where nothing was changed: they are all of one class or have the same features, or
    ``head`` reads more than one row of features an image.

    Args:
        net: in eval mode, on the CPU; ``head`` is one of its layers and has an output for each class of ``train``.
        train: labelled; of more than ``MOST_IMAGES`` a class-balanced sample is taken.
        device: where the features are computed.

    Raises:
        ModelError: the features are not finite.
    """
    chosen = calibration_sample(train, min(MOST_IMAGES, len(train)), seed=seed)
    x, y = _features(net, head, train.subset(sorted(chosen), train.name), preprocess, device, workers, progress)
    classes = np.unique(y)
    if not np.isfinite(x).all():
        raise ModelError(
            "the network's features have NaN or infinite values on training images",
            remedy="its weights or statistics are broken: load another checkpoint",
        )
    if len(classes) < 2 or x.ndim != 2 or x.std() == 0:
        return 0
    progress.note(f"fitting the new classifier to {x.shape[1]} features of {len(y)} training images")
    x /= (scale := float(x.std()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it stopped before it had converged
        solver = LogisticRegression(C=1 / (_PENALTY * len(y)), max_iter=_STEPS, fit_intercept=head.bias is not None)
        found = solver.fit(x, y)
    weight, bias = found.coef_ / scale, found.intercept_
    if len(classes) == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    with torch.no_grad():
        head.weight.zero_()
        head.weight[classes] = torch.from_numpy(weight).float()
        if head.bias is not None:
            head.bias.fill_(float(bias.min()))  # of a class that no image has
            head.bias[classes] = torch.from_numpy(bias).float()
    return len(y)


@torch.no_grad()
def _features(
    net: nn.Module,
    head: nn.Linear,
    split: Split,
    preprocess: Preprocess,
    device: torch.device,
    workers: int,
    progress: Progress,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What ``head`` reads (images, features), and the labels (images,)."""
    read: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, args: read.append(args[0].float().cpu()))
    labels = []
    net.to(device)
    try:
        loader = batches(split, eval_transform(preprocess), _BATCH, workers=workers)
        for x, y in progress.track(loader, "features for the new classifier"):
            net(x.to(device))
            labels.append(y)
    finally:
        hook.remove()
        net.to("cpu")
    return torch.cat(read).numpy(), torch.cat(labels).numpy()
