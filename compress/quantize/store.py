"""A calibrated network as files: ``model.*`` quantized, ``quantizers.json``, and ``float/`` as it was."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from compress.errors import CheckpointError
from compress.models.model import Model, load_model, save_model
from compress.quantize.calibrate import Calibrated
from compress.quantize.graph import trace
from compress.quantize.quantizer import Quantizers
from compress.targets import names

QUANTIZERS = "quantizers.json"


def save_calibrated(model: Model, calibrated: Calibrated, folder: Path) -> None:
    """Write a calibrated network; ``model`` says what it is of."""
    save_model(model.clone(calibrated.net), folder)
    save_model(model.clone(calibrated.float_net), folder / "float")
    calibrated.quantizers.save(folder / QUANTIZERS)


def load_calibrated(folder: Path, factory: str = "") -> Calibrated:
    """Read what ``save_calibrated`` wrote.

    Args:
        factory: see ``load_model``.

    Raises:
        CheckpointError: a file is missing or damaged, or the quantizers are not those of the network.
    """
    net, float_net = load_model(folder, factory).net, load_model(folder / "float", factory).net
    quantizers = Quantizers.load(folder / QUANTIZERS)
    _check(net, quantizers, folder / QUANTIZERS)
    return Calibrated(net, quantizers, float_net)


def _check(net: nn.Module, quantizers: Quantizers, path: Path) -> None:
    """Make sure that what is quantized is there: layers with as many channels as scales, and graph nodes."""
    remedy, layers = "run the quantize stage again", dict(net.named_modules())
    if quantizers.target not in names():
        raise CheckpointError(f"{path} is for target '{quantizers.target}', which is unknown", remedy=remedy)
    for one in quantizers.weights:
        weight = getattr(layers.get(one.layer), "weight", None)
        if not isinstance(weight, Tensor) or len(weight) != len(one.scale):
            raise CheckpointError(f"{path} does not fit layer '{one.layer}': {len(one.scale)} scales", remedy=remedy)
    nodes = {node.name for node in trace(net).graph.nodes}
    for each in quantizers.activations:
        for name in (each.source, each.user):
            if name is not None and name not in nodes:
                raise CheckpointError(f"{path} quantizes the output of '{name}', which is not a node", remedy=remedy)
