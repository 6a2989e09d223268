"""A calibrated network as files: ``model.*`` quantized, ``quantizers.json``, and ``float/`` as it was."""

from __future__ import annotations

from pathlib import Path

from compress.models.model import Model, load_model, save_model
from compress.quantize.calibrate import Calibrated
from compress.quantize.quantizer import Quantizers

QUANTIZERS = "quantizers.json"


def save_calibrated(model: Model, calibrated: Calibrated, folder: Path) -> None:
    """Write a calibrated network; ``model`` says what it is of."""
    save_model(model.clone(calibrated.net), folder)
    save_model(model.clone(calibrated.float_net), folder / "float")
    calibrated.quantizers.save(folder / QUANTIZERS)


def load_calibrated(folder: Path) -> Calibrated:
    """Read what ``save_calibrated`` wrote.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    net, float_net = load_model(folder).net, load_model(folder / "float").net
    return Calibrated(net, Quantizers.load(folder / QUANTIZERS), float_net)
