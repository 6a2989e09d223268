"""Stages ``quantize``, which turns a trained network into INT8 files, and ``sensitivity``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from calibration.datasets import Data
from calibration.loader import Batches, batches
from calibration.split import Split
from calibration.transforms import eval_transform
from compress.config import Config
from compress.data import RunImages
from compress.distributed import pick_device, run_stage
from compress.errors import DataError
from compress.files import tree_sha256, write_atomic, write_json
from compress.lead import lead_stage
from compress.models.model import Model, load_model
from compress.parse import read
from compress.quantize.calibrate import Calibrated, calibrate
from compress.quantize.fakequant import fake_quantized, trained
from compress.quantize.fallback import keep_accuracy
from compress.quantize.quantizable import check_quantizable, in_float
from compress.quantize.sensitivity import sensitivities
from compress.quantize.store import load_calibrated, save_calibrated
from compress.run import Run
from compress.train.evaluate import evaluate
from compress.train.tune import tune

RECORD = "quantize.json"
ALL_INT8 = "all_int8"

HeldOut = dict[str, float]  # top-1 on held-out images, by network; and how many images
CALIBRATION = "calibration.json"


@dataclass(frozen=True)
class Sample:
    """``calibration.json``: which images a network was calibrated on, and how.

    Attributes:
        sha256: over the digests of the images.
    """

    images: int
    seed: int
    sha256: str
    method: str
    correction: str


@dataclass(frozen=True)
class QuantizeFile:
    """``quantize.json``: what was quantized, for which target, and how.

    Attributes:
        source: the stage whose network it was.
        held_out_top1: None where nothing is held out, and for a backbone.
        float_layers: those that were left in float to keep the accuracy, the costliest first, then those that cannot
            run in INT8.
    """

    source: str
    target: str
    mode: str
    calibration: Sample
    held_out_top1: HeldOut | None
    float_layers: tuple[str, ...]


def quantize(config: Config, run: Run, *, source: str = "finetune") -> Path:
    """Stage ``quantize``: the INT8 network (see ``store``) and the record ``quantize.json``.

    Args:
        source: the stage whose network is quantized: ``finetune`` (pruned) or ``baseline`` (unpruned).

    Raises:
        PipelineError: ``source`` has not run.
        DataError: no images to calibrate on, too few, or some that accuracy is measured on; QAT without train images.
        ModelError: see ``calibrate``.
    """
    parent = run.need(source)
    images = RunImages(config.data, config.run.seed, run.directory, run.progress)
    calibration = _calibration(config, run, parent, images)
    settings: dict[str, Any] = {
        "seed": config.run.seed,
        "source": source,
        "target": config.target.name,
        "data": images.settings,
        "mode": config.quantize.mode,
    }
    if config.quantize.mode == "qat":
        settings["qat"] = config.qat.record()
    elif config.quantize.max_drop is not None:
        settings["max_drop"] = config.quantize.max_drop
        settings["sensitivity_images"] = config.quantize.sensitivity_images

    def work(out: Path, scratch: Path) -> None:
        model, data = load_model(parent, config.model.arch), images.data
        calibrated = load_calibrated(calibration, config.model.arch)
        for layer in check_quantizable(model.net, config.target.name, model.preprocess.shape):
            run.progress.note(str(layer))
        held_out = _held_out(calibrated, model, data, config, run)
        float_layers: tuple[str, ...] = ()
        if config.quantize.mode == "qat":
            calibrated, held_out = _train(calibrated, held_out, model, data, config, run, scratch)
        elif config.quantize.max_drop is not None:
            limit = config.quantize.max_drop
            mixed, float_layers, held_out = _within(limit, calibrated, held_out, model, images, config, run)
            if float_layers:
                save_calibrated(model, calibrated, out / ALL_INT8)  # what they cost in latency is measured beside it
            calibrated = mixed
        save_calibrated(model, calibrated, out)
        sample = read(calibration / CALIBRATION, Sample, remedy=f"delete the folder {calibration}, and quantize again")
        float_layers = tuple(dict.fromkeys((*float_layers, *in_float(calibrated.net, calibrated.quantizers))))
        record = QuantizeFile(source, config.target.name, config.quantize.mode, sample, held_out, float_layers)
        write_json(out / RECORD, asdict(record))

    device = pick_device(config.qat.device)
    return run_stage(run, "quantize", work, device=device, settings=settings, parents=[parent, calibration])


def sensitivity(config: Config, run: Run) -> Path:
    """Stage ``sensitivity``: what each layer of the quantized network costs, as ``sensitivity.json`` and ``.md``.

    Raises:
        PipelineError: stage ``quantize`` has not run.
        DataError: no images to calibrate on, or too few.
    """
    quantized = run.need("quantize")
    wanted = config.quantize.sensitivity_images
    images = RunImages(config.data, config.run.seed, run.directory, run.progress)
    settings = {"images": wanted, "seed": config.run.seed, "data": images.settings}

    def work(out: Path, scratch: Path) -> None:
        model = load_model(quantized, config.model.arch)
        sample = images.sample(wanted, run.progress)
        found = sensitivities(load_calibrated(quantized, config.model.arch), _stacked(sample, model), run.progress)
        write_json(out / "sensitivity.json", found.to_json())
        write_atomic(out / "sensitivity.md", found.to_markdown())
        run.progress.note(found.to_markdown())

    return lead_stage(run, "sensitivity", work, settings=settings, parents=[quantized])


def _calibration(config: Config, run: Run, parent: Path, images: RunImages) -> Path:
    """The calibrated network, from ``calibrations/`` where these images and settings have been used before."""
    fields = {"calibration_images", "batch_size", "method", "correction", "equalization"}
    settings = {
        "target": config.target.profile.model_dump(mode="json"),
        "data": images.settings,
        "seed": config.run.seed,
        **config.quantize.model_dump(mode="json", include=fields),
    }

    def work(out: Path, scratch: Path) -> None:
        model = load_model(parent, config.model.arch)
        sample = images.sample(config.quantize.calibration_images, run.progress)
        transform, size = eval_transform(model.preprocess), config.quantize.batch_size
        calibrated = calibrate(
            model.net,
            _Images(batches(sample, transform, size, workers=config.data.workers)),
            config.target.name,
            method=config.quantize.method,
            correction=config.quantize.correction,
            equalization=config.quantize.equalization,
            progress=run.progress,
        )
        save_calibrated(model, calibrated, out)
        kept = config.quantize
        record = Sample(len(sample), config.run.seed, _digest(sample), kept.method, kept.correction)
        write_json(out / CALIBRATION, asdict(record))

    text = json.dumps([settings, tree_sha256(parent)], sort_keys=True, default=str)
    name = f"{config.target.name}-{config.quantize.method}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    store = Run(run.directory / "calibrations", force=run.force, progress=run.progress)
    return lead_stage(store, name, work, settings=settings, parents=[parent])


def _stacked(sample: Split, model: Model) -> Tensor:
    """All images as one batch (N, C, H, W)."""
    return torch.cat([x for x, _ in batches(sample, eval_transform(model.preprocess), batch_size=16)])


@dataclass(frozen=True)
class _Images:
    """A loader's images, without their labels."""

    loader: Batches

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Tensor]:
        for x, _ in self.loader:
            yield x


def _held_out(calibrated: Calibrated, model: Model, data: Data, config: Config, run: Run) -> HeldOut | None:
    """Top-1 on held-out training images, before and after; None where there are none, and for a backbone."""
    holdout = data.holdout
    if holdout is None or not holdout.labelled or not model.classes:
        return None
    workers = config.data.workers
    fp32, ptq = (
        evaluate(net, holdout, model.preprocess, workers=workers, progress=run.progress).top1
        for net in (model.net, calibrated.fake())
    )
    run.progress.note(f"held-out top-1: fp32 {fp32:.2%}, INT8 {ptq:.2%}")
    return {"images": len(holdout), "fp32": fp32, "ptq": ptq}


def _within(
    max_drop: float,
    calibrated: Calibrated,
    held_out: HeldOut | None,
    model: Model,
    images: RunImages,
    config: Config,
    run: Run,
) -> tuple[Calibrated, tuple[str, ...], HeldOut]:
    """Leave layers in float until the held-out top-1 drops by at most ``max_drop`` points."""
    holdout = images.data.holdout
    if holdout is None or held_out is None:
        raise DataError(
            "max_drop needs labelled images that are held out of training, and a classifier",
            remedy="set data.train and data.holdout, or leave quantize.max_drop unset",
        )
    sample = _stacked(images.sample(config.quantize.sensitivity_images, run.progress), model)
    top1 = {"ptq": held_out["ptq"]}

    def drop(net: nn.Module) -> float:
        top1["mixed"] = evaluate(net, holdout, model.preprocess, workers=config.data.workers).top1
        return 100 * (held_out["fp32"] - top1["mixed"])

    order = sensitivities(calibrated, sample, run.progress).worst_first()
    mixed, layers = keep_accuracy(calibrated, order, drop, max_drop, progress=run.progress)
    return mixed, layers, {**held_out, **top1}


def _train(
    calibrated: Calibrated,
    held_out: HeldOut | None,
    model: Model,
    data: Data,
    config: Config,
    run: Run,
    scratch: Path,
) -> tuple[Calibrated, HeldOut | None]:
    """Quantization-aware training from the calibrated state, with the float network as teacher.

    ``fit`` counts the state that it starts from among the candidates, so QAT is never worse than PTQ on the held-out
    images.
    """
    if data.train is None and config.qat.labels and model.classes:
        raise DataError(
            "QAT needs training images, and data.train is not set",
            remedy="use quantize.mode=ptq; or set qat.labels=false, which makes do with the calibration images",
        )
    fake = fake_quantized(calibrated.net, calibrated.quantizers, config.qat.scales)
    history = tune(
        fake,
        model,
        model.net if config.qat.distill > 0 else None,
        data,
        config.qat,
        seed=config.run.seed,
        workers=config.data.workers,
        scratch=scratch,
        progress=run.progress,
    )
    net, quantizers = trained(calibrated.net, calibrated.quantizers, fake)
    result = Calibrated(net, quantizers, float_net=net)
    if held_out is not None and data.holdout is not None and history.epochs:
        top1 = history.top1
        if top1 is None:  # trained without labels
            top1 = evaluate(result.fake(), data.holdout, model.preprocess, workers=config.data.workers).top1
        held_out = {**held_out, "qat": top1, "qat_epoch": history.best}
    return result, held_out


def _digest(sample: Split) -> str:
    """SHA-256 over the digests of the images, in their order."""
    text = "\n".join(sample.digest(i) for i in range(len(sample)))
    return hashlib.sha256(text.encode()).hexdigest()
