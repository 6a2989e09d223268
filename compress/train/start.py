"""The network that training begins with: built or loaded, followed, checked, with a new classifier where asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from calibration.loader import batches
from calibration.preprocess import Preprocess
from calibration.sampler import calibration_sample
from calibration.split import Split, check_classes
from calibration.transforms import eval_transform
from compress.config import ModelConfig
from compress.data import RunImages
from compress.errors import DataError, ModelError
from compress.frontend.network import RaisedNetwork
from compress.frontend.raising import accept
from compress.graph.head import head_of
from compress.models.batchnorm import has_stale_statistics, reparameterize
from compress.models.checkpoint import load_trained
from compress.models.layers import make_layer, shape_of
from compress.models.prepare import prepare
from compress.models.registry import build
from compress.models.sanity import check_activations
from compress.models.shapes import replace_module
from compress.progress import SILENT, Progress
from compress.train.evaluate import class_count
from compress.train.probe import fit_classifier

_STATISTICS_IMAGES = 256

Examine = Callable[[nn.Module, Sequence[int]], Iterable[object]]
"""What is worth a note about a network for images (C, H, W), before anything is trained."""


def starting_network(
    config: ModelConfig,
    images: RunImages,
    preprocess: Preprocess,
    *,
    epochs: int,
    device: torch.device,
    seed: int = 0,
    workers: int = 0,
    resumed: bool = False,
    examine: Examine = lambda net, shape: (),
    progress: Progress = SILENT,
) -> RaisedNetwork:
    """The configured network before its first epoch.

    Args:
        epochs: that it will be trained for.
        device: where a new classifier is fitted.
        workers: processes that read images.
        resumed: its weights will be replaced by those of a training that was interrupted.

    Raises:
        DataError: the data have other classes than the network, or a new classifier has no labelled images.
        CheckpointError, ModelError: see ``load_trained``, ``accept`` and ``check_activations``.
    """
    net = _accepted(_loaded_or_built(config, images, preprocess, seed, progress), preprocess, progress)
    data, weights = images.data, config.weights
    renewed = _renew_head(net, preprocess, data.labelled, seed) if config.new_head else None
    for remark in examine(net, preprocess.shape):
        progress.note(f"note: {remark}")
    outputs = class_count(net, preprocess)
    for split in (data.train, data.eval):
        if split is not None and outputs is not None and (split.labelled or epochs):
            check_classes(split, outputs)
    if weights is not None:
        check_activations(net, _a_few_images(data.calibration or data.eval, preprocess))
    given = weights is not None or outputs is None  # a backbone's factory may have loaded its own weights
    if given and data.calibration is not None and has_stale_statistics(net):
        progress.note("BN statistics were folded into the weights: measured again, without changing the function")
        reparameterize(net, _some_images(data.calibration, preprocess, seed))
    if renewed is not None and not resumed:
        fitted, train = 0, data.train
        if isinstance(renewed, nn.Linear) and train is not None and train.labelled:
            net.eval()
            fitted = fit_classifier(
                net, renewed, train, preprocess, device=device, seed=seed, workers=workers, progress=progress
            )
        if not (fitted or epochs):
            progress.note("note: the new classifier has random weights: it was not fitted, and train.epochs is 0")
    return net


def _accepted(net: nn.Module, preprocess: Preprocess, progress: Progress) -> RaisedNetwork:
    """The network as all stages see it: raised, with a note on what its training mode would compute besides.

    Raises:
        ModelError: it cannot be followed; the message names the line.
    """
    accepted = accept(net, preprocess.shape)
    if accepted.changes:
        progress.note(
            f"note: in training mode the network computes something else ({', '.join(accepted.changes)}); "
            "the pipeline trains what it computes in eval mode"
        )
    return accepted.net


def _loaded_or_built(
    config: ModelConfig, images: RunImages, preprocess: Preprocess, seed: int, progress: Progress
) -> nn.Module:
    """The configured network before training: freshly initialised, or from its weights, or with a fresh classifier."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = None
        if config.weights is not None:  # before the images are opened, so that a wrong file is reported at once
            net = load_trained(config, shape=preprocess.shape, progress=progress)
        labelled = images.data.labelled
        classes = None if labelled is None else len(labelled.classes)
        if net is None:
            net = prepare(build(config.arch, classes, config.args), preprocess.shape, progress)
        return net


def _renew_head(net: RaisedNetwork, preprocess: Preprocess, labelled: Split | None, seed: int) -> nn.Module:
    """Replace the classifier by a new one for the classes of the data, in place; returns that."""
    name = head_of(net, preprocess.shape)
    if name is None:
        raise ModelError(
            "the network has no classifier to replace: no convolution or fully connected layer makes its one output",
            remedy="set model.new_head=false",
        )
    if labelled is None:
        raise DataError("model.new_head needs labelled images", remedy="set data.train")
    shape = shape_of(net.get_submodule(name))
    assert shape is not None
    width = "out_features" if shape["type"] == "Linear" else "out_channels"
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        replace_module(net, name, make_layer({**shape, width: len(labelled.classes)}))
    return net.get_submodule(name)


def _a_few_images(split: Split | None, preprocess: Preprocess) -> torch.Tensor:
    """Images (N, C, H, W) from all over the split; noise where there is none."""
    if split is None:
        return torch.randn(4, *preprocess.shape, generator=torch.Generator().manual_seed(0))
    chosen = split.subset(range(0, len(split), max(1, len(split) // 4))[:4], split.name)
    return torch.cat([x for x, _ in batches(chosen, eval_transform(preprocess), batch_size=4)])


def _some_images(split: Split, preprocess: Preprocess, seed: int) -> list[torch.Tensor]:
    """A class-balanced sample in batches (N, C, H, W)."""
    chosen = calibration_sample(split, min(_STATISTICS_IMAGES, len(split)), seed=seed)
    loader = batches(split.subset(chosen, split.name), eval_transform(preprocess), batch_size=32)
    return [x for x, _ in loader]
