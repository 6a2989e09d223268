"""Measure how much of the accuracy each layer's quantization costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from compress.parse import Finite
from compress.progress import SILENT, Progress
from compress.quantize.calibrate import Calibrated

_BATCH = 8  # images at a time, whose layer outputs are all held in memory


@dataclass(frozen=True)
class Sensitivity:
    """What quantizing one layer does, as signal-to-quantization-noise ratios (SQNR) in dB; more is better.

    Attributes:
        alone: at the network's outputs when only this layer's weight and input are INT8.
        without: at the network's outputs when all but this layer are INT8.
        output: at this layer's output in the INT8 network, with the errors of all layers before it.
    """

    layer: str
    alone: float
    without: float
    output: float


@dataclass(frozen=True)
class LayerRatios:
    """``Sensitivity`` in JSON: None for an infinite ratio (no noise, or no signal)."""

    layer: str
    alone: Finite | None
    without: Finite | None
    output: Finite | None


@dataclass(frozen=True)
class SensitivityFile:
    """What ``sensitivity.json`` holds; ``whole`` is None where the ratio is infinite."""

    whole: Finite | None
    layers: tuple[LayerRatios, ...]


@dataclass(frozen=True)
class Sensitivities:
    """Of every layer, in the order of execution; ``whole`` is the network's with all of them in INT8."""

    whole: float
    layers: tuple[Sensitivity, ...]

    def worst_first(self) -> tuple[str, ...]:
        """Layers by what leaving them in float gains, the largest gain first."""
        return tuple(s.layer for s in sorted(self.layers, key=lambda s: -s.without))

    def to_json(self) -> dict[str, Any]:
        """As ``sensitivity.json`` holds it; see ``SensitivityFile``."""

        def finite(value: float) -> float | None:
            return value if math.isfinite(value) else None

        layers = (LayerRatios(s.layer, finite(s.alone), finite(s.without), finite(s.output)) for s in self.layers)
        return asdict(SensitivityFile(finite(self.whole), tuple(layers)))

    def to_markdown(self) -> str:
        """A table, the layer whose being left in float gains most first."""
        by_name = {s.layer: s for s in self.layers}
        rows = [by_name[name] for name in self.worst_first()]
        return "\n".join(
            [
                f"SQNR of the whole network in INT8: {self.whole:.2f} dB; in dB below, more is better.",
                "",
                "| layer | gained when left in float | only this layer in INT8 | at its output |",
                "|---|---:|---:|---:|",
                *(f"| {s.layer} | {s.without - self.whole:+.2f} | {s.alone:.2f} | {s.output:.2f} |" for s in rows),
                "",
            ]
        )


class Ratio:
    """A signal-to-quantization-noise ratio, summed up batch by batch."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, reference: Tensor, other: Tensor) -> None:
        """Two tensors of one shape."""
        reference, other = reference.double(), other.double()
        self.signal += float(reference.square().sum())
        self.noise += float((reference - other).square().sum())

    @property
    def db(self) -> float:
        """10 log10(sum r^2 / sum (r - q)^2)."""
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


def sqnr(reference: nn.Module, other: nn.Module, images: Tensor) -> float:
    """The SQNR of one network's outputs against another's, in dB.

    Args:
        images: (N, C, H, W).
    """
    ratio = Ratio()
    for batch in torch.split(images, _BATCH):
        for a, b in zip(_leaves(reference(batch)), _leaves(other(batch)), strict=True):
            ratio.add(a.detach(), b.detach())
    return ratio.db


@torch.no_grad()
def sensitivities(calibrated: Calibrated, images: Tensor, progress: Progress = SILENT) -> Sensitivities:
    """Quantize each layer alone, and all but each: two runs of the network a layer.

    Args:
        images: (N, C, H, W), preprocessed; 32 serve.
    """
    reference, whole = calibrated.float_net, calibrated.fake()
    layers = [w.layer for w in calibrated.quantizers.weights]
    inside = _at_outputs(reference, whole, layers, images)
    found = [
        Sensitivity(
            layer,
            alone=sqnr(reference, calibrated.only(layer).fake(), images),
            without=sqnr(reference, calibrated.leaving([layer]).fake(), images),
            output=inside[layer],
        )
        for layer in progress.track(layers, "sensitivity")
    ]
    return Sensitivities(sqnr(reference, whole, images), tuple(found))


def _at_outputs(reference: nn.Module, other: nn.Module, layers: Sequence[str], images: Tensor) -> dict[str, float]:
    """The SQNR at the output of each layer, all of its calls together."""
    ratios = {layer: Ratio() for layer in layers}
    for batch in torch.split(images, _BATCH):
        with _recorded(reference, layers) as expected, _recorded(other, layers) as outputs:
            reference(batch)
            other(batch)
        for layer, ratio in ratios.items():
            for a, b in zip(expected[layer], outputs[layer], strict=True):
                ratio.add(a.detach(), b.detach())
    return {layer: ratio.db for layer, ratio in ratios.items()}


@contextmanager
def _recorded(net: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    outputs: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    # copies, because a residual block may add to a layer's output in place
    handles = [
        net.get_submodule(name).register_forward_hook(lambda _, __, output, kept=kept: kept.append(output.clone()))
        for name, kept in outputs.items()
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _leaves(outputs: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
