"""Build INT8 engines of pruned networks, and measure their latency as a share of the dense network's."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from benchmarks.rivals.peers.source import Images
from benchmarks.timing.run import measure
from benchmarks.timing.worker import Settings
from calibration.split import Split
from compress.config import Config, TargetConfig
from compress.engines.base import build_engine
from compress.export.lower import lower
from compress.export.onnx import export_onnx
from compress.export.stage import metadata_for
from compress.models.cost import count
from compress.models.model import Model
from compress.models.shapes import describe
from compress.quantize.calibrate import Calibrated, calibrate

_ROUGH_IMAGES = 8
_TIMED = Settings(duration_s=3.0, processes=6)
_SLACK, _TRIES, _PROBES = 0.02, 10, 5
_MACS_PER_LATENCY = 1.25  # first guess of the share of MACs to save per share of latency

Make = Callable[[float], nn.Module]
Share = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Found:
    """The result of ``widest``: the pruning ratio, the network, and its share of the budgeted cost."""

    ratio: float
    net: nn.Module
    share: float


def int8_engine(model: Model, sample: Split, target: TargetConfig, path: Path) -> Path:
    """Calibrate a network with the default settings, and build its engine.

    Args:
        sample: calibration images.
        path: of the exported ONNX file; the engine goes beside it.

    Raises:
        ModelError, EngineError: it cannot be quantized, exported or built.
    """
    images = Images(sample, model.preprocess, Config().quantize.batch_size)
    return _built(model, calibrate(model.net, images, target.name), target, path)


class Probe:
    """The latency of a network's INT8 engine as a share of the dense network's, both timed in turns.

    Latency depends on widths, not on values: the ranges are rough, and networks of equal widths are timed once.

    Args:
        dense: the unpruned network.
        sample: calibration images, of which a few are used.
        folder: keeps the engines; one that lasts as long as the probe.
    """

    def __init__(self, dense: Model, sample: Split, target: TargetConfig, folder: Path) -> None:
        self._dense, self._target, self._folder = dense, target, folder
        self._images = list(Images(sample.subset(range(_ROUGH_IMAGES), "rough"), dense.preprocess, _ROUGH_IMAGES))
        self._settings = dataclasses.replace(_TIMED, threads=target.threads)
        self._shares: dict[str, float] = {}
        self._reference = self._rough(dense, "dense")

    def __call__(self, net: nn.Module) -> float:
        """
        Raises:
            ModelError, EngineError: see ``int8_engine``, and ``benchmarks.timing.run.measure``.
        """
        widths = json.dumps(describe(net))
        if widths not in self._shares:
            engine = self._rough(self._dense.clone(net), f"pruned{len(self._shares)}")
            comparison = measure([self._reference, engine], self._settings)[1].comparison
            assert comparison is not None
            self._shares[widths] = comparison.ratio.value
        return self._shares[widths]

    def _rough(self, model: Model, name: str) -> Path:
        calibrated = calibrate(model.net, self._images, self._target.name, method="minmax", correction="none")
        return _built(model, calibrated, self._target, self._folder / f"{name}.onnx")


def macs_share(dense: Model) -> Share:
    """The multiply-accumulates of a network as a share of ``dense``'s."""
    shape = dense.preprocess.shape
    whole = count(dense.net, shape).macs
    return lambda net: count(net, shape).macs / whole


def widest(make: Make, share: Share, budget: float, *, slack: float = _SLACK) -> Found | None:
    """Bisect the pruning ratio for the network that uses most of a budget.

    Args:
        make: prunes by a ratio of the channels, from 0 to 1.
        share: of a network, such as ``macs_share``; cheap.
        budget: share that it may take at most; within ``slack`` below it the search ends.

    Returns:
        None where none of the tries keeps within the budget.

    >>> net = widest(lambda ratio: nn.Conv2d(1, round(100 * (1 - ratio)), 1), lambda net: net.out_channels / 100, 0.5)
    >>> net.share
    0.5
    """
    low, high, best = 0.0, 0.95, None
    for _ in range(_TRIES):
        ratio = (low + high) / 2
        net = make(ratio)
        found = share(net)
        if found <= budget and (best is None or found > best.share):
            best = Found(ratio, net, found)
        if budget - slack < found <= budget:
            break
        low, high = (ratio, high) if found > budget else (low, ratio)
    return best


def fitted(make: Make, macs: Share, latency: Share, budget: float) -> tuple[Found | None, list[tuple[float, float]]]:
    """Like ``widest`` for a share that is slow to measure, such as a ``Probe``'s.

    The saved latency is nearly proportional to the saved MACs. So the search uses the MACs, and each measured latency
    corrects the budget of MACs.

    Returns:
        the best within the budget, and all that was tried as (share of the MACs, share of the latency).
    """
    best, tried = None, list[tuple[float, float]]()
    low, high, aim = 0.0, 1.0, max(1 - (1 - budget) * _MACS_PER_LATENCY, budget / 2)
    for _ in range(_PROBES):
        net = widest(make, macs, aim, slack=_SLACK / 4)
        if net is None or net.share in dict(tried):
            break
        found = latency(net.net)
        tried.append((net.share, found))
        if found <= budget and (best is None or found > best.share):
            best = Found(net.ratio, net.net, found)
        if budget - _SLACK < found <= budget:
            break
        low, high = (net.share, high) if found <= budget else (low, net.share)
        wanted = 1 - budget + _SLACK / 2
        aim = 1 - (1 - net.share) * wanted / max(1 - found, _SLACK)
        if not low < aim < high:
            aim = (low + high) / 2
    return best, tried


def identity(split: Split) -> str:
    """SHA-256 over the images of a split and their labels."""
    text = "\n".join(f"{split.digest(i)} {split.labels[i]}" for i in range(len(split)))
    return hashlib.sha256(text.encode()).hexdigest()


def _built(model: Model, calibrated: Calibrated, target: TargetConfig, path: Path) -> Path:
    metadata = metadata_for(model, model, "int8", target.name)
    profile = target.profile
    lowered = lower(calibrated.net, calibrated.quantizers)
    export_onnx(lowered, path, metadata, profile.opset, half=profile.float_type == "float16")
    return build_engine(target.engine, path, path.parent, target)
