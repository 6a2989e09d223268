"""Stages ``baseline`` (the trained network that later results are compared with) and ``finetune`` (after pruning)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from calibration.datasets import Data
from calibration.preprocess import Preprocess
from calibration.split import Split
from compress.config import Config
from compress.data import RunImages, preprocess_of
from compress.distributed import pick_device, run_stage
from compress.errors import DataError, ModelError
from compress.files import write_json
from compress.graph.plan import PLAN, WidthPlan
from compress.models.model import Model, describe_model, load_model, save_model
from compress.models.registry import preprocessing_of
from compress.progress import Progress
from compress.run import Run
from compress.train.evaluate import class_count
from compress.train.history import History
from compress.train.loop import NOTHING_TO_LEARN, SNAPSHOT, fit
from compress.train.start import Examine, starting_network
from compress.train.tune import tune

BASELINE_EPOCHS = 12


def baseline(config: Config, run: Run, examine: Examine = lambda net, shape: ()) -> Path:
    """Stage ``baseline``: a trained network in ``model.safetensors`` and ``model.json``, with ``history.json``.

    Without ``model.weights``, and with ``model.new_head``, the network is trained for ``train.epochs`` (12 where that
    is not set); given weights are trained on only where it is set.

    Raises:
        DataError: the data have other classes than the network, or training images are needed and absent.
        CheckpointError, ModelError, ConfigError: see ``starting_network`` and ``fit``.
    """
    weights = config.model.weights
    fresh = weights is None or config.model.new_head
    epochs = config.train.epochs if config.train.epochs is not None else BASELINE_EPOCHS * fresh
    images = RunImages(config.data, config.run.seed, run.directory, run.progress)

    def work(out: Path, scratch: Path) -> None:
        preprocess = preprocess_of(config.data, preprocessing_of(config.model.arch))
        net = starting_network(
            config.model,
            images,
            preprocess,
            epochs=epochs,
            device=pick_device(config.train.device),
            seed=config.run.seed,
            workers=config.data.workers,
            resumed=(scratch / SNAPSHOT).exists(),
            examine=examine,
            progress=run.progress,
        )
        data, outputs = images.data, class_count(net, preprocess)
        chosen = 0 if outputs is None and config.train.epochs is None else epochs
        if outputs is None:
            _tell_of_a_backbone(config, chosen, run.progress)
        history = _train(net, data, preprocess, chosen, config, scratch, run.progress)
        names = _class_names(outputs, data.labelled)
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


def _class_names(outputs: int | None, labelled: Split | None) -> tuple[str, ...]:
    """The data's names where they are this network's classes, else numbers; none for a backbone."""
    if outputs is None:
        return ()
    if labelled is None or labelled.indexed:
        return tuple(map(str, range(outputs)))
    return labelled.classes


def _settings(config: Config, images: RunImages, *sections: str) -> dict[str, Any]:
    """What of the configuration the output depends on, the images included."""
    chosen = {name: getattr(config, name).model_dump(mode="json") for name in sections}
    if "finetune" in sections:
        chosen["finetune"] = config.finetune.record()
    return {**chosen, "data": images.settings, "seed": config.run.seed}
