"""The stage ``quantize``: a trained network in, the same network in INT8 out, as files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from calibration.datasets import Data
from calibration.loader import Batches, batches
from calibration.sampler import calibration_sample
from calibration.split import Split
from calibration.transforms import eval_transform
from compress.config import Config
from compress.data import data_settings, open_data
from compress.errors import DataError
from compress.models.model import Model, load_model, save_model
from compress.progress import Progress
from compress.quantize.calibrate import Calibrated, calibrate
from compress.quantize.fakequant import trained
from compress.run import Run, write_json
from compress.train.distributed import pick_device, run_stage
from compress.train.evaluate import evaluate
from compress.train.loop import fit

QUANTIZERS = "quantizers.json"
RECORD = "quantize.json"


def quantize(config: Config, run: Run, *, source: str = "finetune") -> Path:
    """Stage ``quantize``: BN-folded ``model.*``, ``quantizers.json``, and the record ``quantize.json``.

    Args:
        source: the stage whose network is quantized: ``finetune`` (pruned) or ``baseline`` (unpruned).

    Raises:
        PipelineError: ``source`` has not run.
        DataError: no images to calibrate on, too few, or some that accuracy is measured on; QAT without train images.
        ModelError: see ``calibrate``.
    """
    parent = run.need(source)
    settings: dict[str, Any] = {
        "seed": config.run.seed,
        "source": source,
        "target": config.target.engine,
        "data": data_settings(config),
        "quantize": config.quantize.model_dump(mode="json"),
    }
    if config.quantize.mode == "qat":
        settings["qat"] = config.qat.model_dump(mode="json")

    def work(out: Path, scratch: Path) -> None:
        model, data = load_model(parent), open_data(config)
        sample = _sample(config, data, run.progress)
        loader = batches(
            sample, eval_transform(model.preprocess), config.quantize.batch_size, workers=config.data.workers
        )
        calibrated = calibrate(model.net, _Images(loader), config.target.engine, run.progress)
        if config.quantize.mode == "qat":
            net, held_out = _train_on(calibrated, model, data, config, run, scratch)
        else:
            net, held_out = calibrated.net, _held_out(calibrated, model, data, config, run)
        save_model(model.clone(net), out)
        calibrated.quantizers.save(out / QUANTIZERS)
        record = {
            "source": source,
            "target": config.target.engine,
            "mode": config.quantize.mode,
            "calibration": {"images": len(sample), "seed": config.run.seed, "sha256": _digest(sample)},
            "bias_corrected": calibrated.bias_corrected,
            "held_out_top1": held_out,
        }
        write_json(out / RECORD, record)

    return run_stage(run, "quantize", work, device=pick_device(config.qat.device), settings=settings, parents=[parent])


def _sample(config: Config, data: Data, progress: Progress) -> Split:
    """The calibration images: seeded, class-balanced, none of them in the evaluation split."""
    if data.calibration is None:
        raise DataError("there are no images to calibrate on", remedy="set data.calibration or data.train")
    count = min(config.quantize.calibration_images, len(data.calibration))
    if count < config.quantize.calibration_images:
        progress.note(f"  calibrating on all {count} images, fewer than quantize.calibration_images")
    chosen = calibration_sample(data.calibration, count, seed=config.run.seed, exclude=data.eval)
    return data.calibration.subset(chosen, "calibration")


@dataclass(frozen=True)
class _Images:
    """A loader's images, without their labels."""

    loader: Batches

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Tensor]:
        for x, _ in self.loader:
            yield x


def _held_out(
    calibrated: Calibrated, model: Model, data: Data, config: Config, run: Run
) -> dict[str, float | int] | None:
    """Top-1 on held-out training images, before and after; None where there are none, and for a backbone."""
    holdout = data.holdout
    if holdout is None or not model.classes:
        return None
    workers = config.data.workers
    fp32, ptq = (
        evaluate(net, holdout, model.preprocess, workers=workers, progress=run.progress).top1
        for net in (model.net, calibrated.fake())
    )
    run.progress.note(f"held-out top-1: fp32 {fp32:.2%}, INT8 {ptq:.2%}")
    return {"images": len(holdout), "fp32": fp32, "ptq": ptq}


def _train_on(
    calibrated: Calibrated, model: Model, data: Data, config: Config, run: Run, scratch: Path
) -> tuple[nn.Module, dict[str, float | int] | None]:
    """Quantization-aware training from the calibrated state, with the float network as teacher.

    ``fit`` counts the state that it starts from among the candidates, so QAT is never worse than PTQ on the held-out
    images.
    """
    if data.train is None:
        raise DataError("QAT needs training images, and data.train is not set", remedy="use quantize.mode=ptq")
    fake = calibrated.fake()
    held_out = _held_out(calibrated, model, data, config, run)
    history = fit(
        fake,
        data.train,
        data.holdout,
        model.preprocess,
        config.qat,
        epochs=config.qat.epochs or 0,
        seed=config.run.seed,
        workers=config.data.workers,
        teacher=model.net if config.qat.distill > 0 else None,
        scratch=scratch,
        progress=run.progress,
    )
    if held_out is not None and history.top1 is not None:
        held_out = {**held_out, "qat": history.top1, "qat_epoch": history.best}
    return trained(calibrated.net, fake), held_out


def _digest(sample: Split) -> str:
    """SHA-256 over the digests of the images, in their order."""
    text = "\n".join(sample.digest(i) for i in range(len(sample)))
    return hashlib.sha256(text.encode()).hexdigest()
