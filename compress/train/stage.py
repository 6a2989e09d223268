"""Stages ``baseline`` (the trained network that later results are compared with) and ``finetune`` (after pruning)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calibration.datasets import Data
from calibration.loader import batches
from calibration.preprocess import Preprocess
from calibration.sampler import calibration_sample
from calibration.split import Split, check_classes
from calibration.transforms import eval_transform
from compress.config import Config, ModelConfig
from compress.data import RunImages, preprocess_of
from compress.distributed import pick_device, run_stage
from compress.errors import DataError, ModelError
from compress.files import write_json
from compress.frontend.network import RaisedNetwork
from compress.frontend.raising import accept
from compress.graph.head import head_of
from compress.graph.plan import PLAN, WidthPlan
from compress.models.batchnorm import has_stale_statistics, reparameterize
from compress.models.checkpoint import load_trained
from compress.models.layers import make_layer, shape_of
from compress.models.model import Model, describe_model, load_model, save_model
from compress.models.prepare import prepare
from compress.models.registry import build, preprocessing_of
from compress.models.sanity import check_activations
from compress.models.shapes import replace_module
from compress.progress import Progress
from compress.run import Run
from compress.train.evaluate import class_count
from compress.train.history import History
from compress.train.loop import NOTHING_TO_LEARN, SNAPSHOT, fit
from compress.train.probe import fit_classifier
from compress.train.tune import tune

BASELINE_EPOCHS = 12
_STATISTICS_IMAGES = 256


Examine = Callable[[nn.Module, Sequence[int]], Iterable[object]]
"""What is worth a note about a network for images (C, H, W), before anything is trained."""


def baseline(config: Config, run: Run, examine: Examine = lambda net, shape: ()) -> Path:
    """Stage ``baseline``: a trained network in ``model.safetensors`` and ``model.json``, with ``history.json``.

    Without ``model.weights``, and with ``model.new_head``, the network is trained for ``train.epochs`` (12 where that
    is not set); given weights are trained on only where it is set.

    Raises:
        DataError: the data have other classes than the network, or training images are needed and absent.
        CheckpointError, ModelError, ConfigError: see ``load_trained``, ``check_activations`` and ``fit``.
    """
    weights = config.model.weights
    fresh = weights is None or config.model.new_head
    epochs = config.train.epochs if config.train.epochs is not None else BASELINE_EPOCHS * fresh
    images = RunImages(config.data, config.run.seed, run.directory, run.progress)

    def work(out: Path, scratch: Path) -> None:
        preprocess = preprocess_of(config.data, preprocessing_of(config.model.arch))
        net = _accepted(_starting_net(config.model, images, preprocess, config.run.seed, run.progress), preprocess, run)
        data = images.data
        labelled = data.labelled
        renewed = _renew_head(net, preprocess, labelled, config.run.seed) if config.model.new_head else None
        for remark in examine(net, preprocess.shape):
            run.progress.note(f"note: {remark}")
        outputs = class_count(net, preprocess)
        for split in (data.train, data.eval):
            if split is not None and outputs is not None and (split.labelled or epochs):
                check_classes(split, outputs)
        if weights is not None:
            check_activations(net, _a_few_images(data.calibration or data.eval, preprocess))
        given = weights is not None or outputs is None  # a backbone's factory may have loaded its own weights
        if given and data.calibration is not None and has_stale_statistics(net):
            run.progress.note(
                "BN statistics were folded into the weights: measured again, without changing the function"
            )
            reparameterize(net, _some_images(data.calibration, preprocess, config.run.seed))
        fitted = 0
        if isinstance(renewed, nn.Linear) and data.train and data.train.labelled and not (scratch / SNAPSHOT).exists():
            fitted = fit_classifier(
                net.eval(),
                renewed,
                data.train,
                preprocess,
                device=pick_device(config.train.device),
                seed=config.run.seed,
                workers=config.data.workers,
                progress=run.progress,
            )
        if renewed is not None and not (fitted or epochs):
            run.progress.note("note: the new classifier has random weights: it was not fitted, and train.epochs is 0")
        chosen = 0 if outputs is None and config.train.epochs is None else epochs
        if outputs is None:
            _tell_of_a_backbone(config, chosen, run.progress)
        history = _train(net, data, preprocess, chosen, config, scratch, run.progress)
        names = _class_names(outputs, labelled)
        save_model(Model(net.eval(), config.model.arch, preprocess, names, config.model.args), out)
        write_json(out / "history.json", history.to_json())

    return run_stage(
        run,
        "baseline",
        work,
        device=pick_device(config.train.device),
        settings=_settings(config, images, "model", "train"),
        parents=[Path(weights)] if weights is not None and Path(weights).is_file() else [],
    )


def finetune(config: Config, run: Run) -> Path:
    """Stage ``finetune``: the pruned network trained on, with the baseline as its teacher where ``finetune.distill``.

    Without labels it learns the features of its teacher, see ``tune``: from the calibration images where there are no
    training images.

    Raises:
        PipelineError: ``baseline`` or ``prune`` has not run.
        DataError: there are no training images.
    """
    pruned = run.need("prune")
    unpruned = _unpruned(run, pruned)
    settings = config.finetune
    images = RunImages(config.data, config.run.seed, run.directory, run.progress)

    def work(out: Path, scratch: Path) -> None:
        model = load_model(pruned, config.model.arch)
        history = tune(
            model.net,
            model,
            load_model(unpruned, config.model.arch).net if settings.distill > 0 else None,
            images.data,
            settings,
            kept=WidthPlan.read(pruned / PLAN).kept,
            seed=config.run.seed,
            workers=config.data.workers,
            scratch=scratch,
            progress=run.progress,
        )
        save_model(model, out)
        write_json(out / "history.json", history.to_json())

    return run_stage(
        run,
        "finetune",
        work,
        device=pick_device(settings.device),
        settings=_settings(config, images, "finetune"),
        parents=[pruned, unpruned],
    )


def other_size(run: Run, size: int) -> Run:
    """The run of the same network at another input size, in ``sizes/``: its baseline, latency table and losses.

    Args:
        size: side of the square input, in pixels.
    """
    return Run(run.directory / "sizes" / f"{size}px", force=run.force, progress=run.progress)


def _unpruned(run: Run, pruned: Path) -> Path:
    """The folder of the network that was pruned: the baseline, or the baseline at the size that pruning has chosen."""
    baseline = run.need("baseline")
    preprocess = describe_model(pruned).preprocess
    if preprocess == describe_model(baseline).preprocess:
        return baseline
    return other_size(run, preprocess.sides[0]).need("baseline")


def _tell_of_a_backbone(config: Config, epochs: int, progress: Progress) -> None:
    """Say what training cannot do for a network without logits before any stage takes its time.

    Raises:
        ModelError: it is to be trained here.
    """
    if epochs:
        raise ModelError(
            "the network has no logits, and only classifiers are trained here",
            remedy="give its trained weights as model.weights, and leave train.epochs unset",
        )
    if config.model.weights is None:
        progress.note(
            "the network has no logits, so it is not trained here: its weights are those that it is built with"
        )
    if config.finetune.epochs and config.finetune.distill == 0:
        progress.note(f"finetune will be skipped: {NOTHING_TO_LEARN}")


def _train(
    net: nn.Module,
    data: Data,
    preprocess: Preprocess,
    epochs: int,
    config: Config,
    scratch: Path,
    progress: Progress,
) -> History:
    if epochs == 0:
        return History((), 0)
    if data.train is None:
        raise DataError("training needs images, and data.train is not set", remedy="set data.train, or epochs to 0")
    return fit(
        net,
        data.train,
        data.holdout,
        preprocess,
        config.train,
        epochs=epochs,
        seed=config.run.seed,
        workers=config.data.workers,
        scratch=scratch,
        progress=progress,
    )


def _accepted(net: nn.Module, preprocess: Preprocess, run: Run) -> RaisedNetwork:
    """The network as all stages see it: raised, with a note on what its training mode would compute besides.

    Raises:
        ModelError: it cannot be followed; the message names the line.
    """
    accepted = accept(net, preprocess.shape)
    if accepted.changes:
        run.progress.note(
            f"note: in training mode the network computes something else ({', '.join(accepted.changes)}); "
            "the pipeline trains what it computes in eval mode"
        )
    return accepted.net


def _starting_net(
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


def _class_names(outputs: int | None, labelled: Split | None) -> tuple[str, ...]:
    """The data's names where they are this network's classes, else numbers; none for a backbone."""
    if outputs is None:
        return ()
    if labelled is None or labelled.indexed:
        return tuple(map(str, range(outputs)))
    return labelled.classes


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


def _settings(config: Config, images: RunImages, *sections: str) -> dict[str, Any]:
    """What of the configuration the output depends on, the images included."""
    chosen = {name: getattr(config, name).model_dump(mode="json") for name in sections}
    if "finetune" in sections:
        chosen["finetune"] = config.finetune.record()
    return {**chosen, "data": images.settings, "seed": config.run.seed}
