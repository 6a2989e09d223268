"""Post-training quantization, from a trained float network to INT8 weights and scales.

The steps, each in a file of its own: fold BN (``fold``), even out channels (``equalize``), ask where quantizers go
(``insertion``), observe values (``histogram``), choose ranges (``ranges``), form quantizers for the target
(``placement``), round the weights to what those quantizers make of the layers before (``correct``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from calibration.errors import DataError
from compress.errors import ModelError
from compress.frontend.raising import raised
from compress.progress import SILENT, Progress
from compress.quantize.completion import complete
from compress.quantize.correct import Correction, correct
from compress.quantize.equalize import equalize
from compress.quantize.fakequant import fake_quantized
from compress.quantize.fold import fold
from compress.quantize.graph import Unrolled, trace
from compress.quantize.grid import Grid
from compress.quantize.histogram import Histogram
from compress.quantize.insertion import Sites, find_sites
from compress.quantize.placement import Range, leave_float, place, quantize_only
from compress.quantize.quantizer import Quantizers
from compress.registries import RANGES
from compress.targets import Profile, profile

_CORRECTED_ON = 32  # images, held in memory at once; a layer's errors are averaged over thousands of their pixels
_JUDGED_ON = 32  # other images: is the equalized network the better one?


@dataclass(frozen=True)
class Calibrated:
    """A quantized network beside the float one that it stands for; both BN-folded, layer by layer alike.

    Attributes:
        net: its weights are for rounding to the quantizers' grids; after calibration they lie there.
        quantizers: what is INT8 in it.
        float_net: what it would compute without quantizers; as the trained network does, or as QAT has made it.
    """

    net: nn.Module
    quantizers: Quantizers
    float_net: nn.Module

    def fake(self) -> fx.GraphModule:
        """The network as INT8 computes it; see ``fake_quantized``."""
        return fake_quantized(self.net, self.quantizers)

    def leaving(self, layers: Collection[str]) -> Calibrated:
        """The same with some layers in float: their own weights, and no quantizer on their inputs."""
        if not layers:
            return self
        net = _with_layers(self.net, self.float_net, layers)
        return replace(self, net=net, quantizers=leave_float(net, self.quantizers, layers))

    def only(self, layer: str) -> Calibrated:
        """The same with nothing quantized but one layer: its weight and its input."""
        net = _with_layers(self.float_net, self.net, [layer])
        return replace(self, net=net, quantizers=quantize_only(net, self.quantizers, layer))


def _with_layers(net: nn.Module, source: nn.Module, layers: Iterable[str]) -> nn.Module:
    result = copy.deepcopy(net)
    for layer in layers:
        result.get_submodule(layer).load_state_dict(source.get_submodule(layer).state_dict())
    return result


class Images(Protocol):
    """Batches (N, C, H, W) of preprocessed images; a list of tensors is one. Iterated several times."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Tensor]: ...


def calibrate(
    net: nn.Module,
    images: Images,
    target: str,
    *,
    method: str = "mse",
    correction: Correction = "gptq",
    equalization: bool = False,
    progress: Progress = SILENT,
) -> Calibrated:
    """Quantize a network to INT8. Deterministic: the same net and images give the same bits.

    Args:
        net: float, on the CPU; not changed.
        images: the images to observe; memory does not grow with their number.
        target: a name in ``targets.names()``.
        method: how a tensor's range is chosen: a name in ``registries.RANGES``.
        correction: how rounding errors of the weights are corrected; see ``correct``.
        equalization: even out channels, and keep that where it lessens the error of the outputs.

    Raises:
        DataError: no images, or images that are not finite.
        ModelError: the net cannot be traced, its weights or activations are not finite (names the layer), or nothing
            in it can be quantized.
        ConfigError: an unknown target.
    """
    grid = Grid.of(profile(target))
    if len(images) == 0:
        raise DataError("the calibration sample is empty", remedy="set quantize.calibration_images above 0")
    folded = fold(raised(net, next(iter(images)).shape[1:]))
    for name, value in folded.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ModelError(f"'{name}' has NaN or infinite values", remedy="load another checkpoint, or train again")
    sites = _sites(folded, images, profile(target))

    def quantized(float_net: nn.Module) -> Calibrated:
        seen = _observe(float_net, sites, images, progress)
        ranges = [Range(source, user, *RANGES[method](seen[source], grid)) for source, user in sites.activations]
        quantizers = place(float_net, target, ranges, _magnitudes(float_net, sites))
        rounded = correct(float_net, quantizers, _first(images, _CORRECTED_ON), correction, progress=progress)
        return Calibrated(rounded, quantizers, float_net)

    plain = quantized(folded)
    if not equalization:
        return plain
    evened = equalize(folded, [_first(images, _CORRECTED_ON)])
    if evened is None:
        progress.note("channels cannot be equalized: not every operation scales with its input (a ReLU does)")
        return plain
    best = _closest((plain, quantized(evened)), folded, _last(images, _JUDGED_ON))
    progress.note(f"channels equalized: {'no, the error is lower without' if best is plain else 'yes'}")
    return best


def _first(images: Images, count: int) -> Tensor:
    """Up to ``count`` images from the start, as one batch."""
    batches, taken = _checked(images), list[Tensor]()
    while sum(map(len, taken)) < count and (batch := next(batches, None)) is not None:
        taken.append(batch)
    return torch.cat(taken)[:count]


def _last(images: Images, count: int) -> Tensor:
    """Up to ``count`` images from the end."""
    last = torch.empty(0)
    for batch in _checked(images):
        last = torch.cat([last, batch])[-count:] if len(last) else batch[-count:]
    return last


@torch.no_grad()
def _closest(candidates: Sequence[Calibrated], reference: nn.Module, images: Tensor) -> Calibrated:
    """The candidate with the least squared error in the network's outputs."""
    expected = pytree.tree_leaves(reference(images))

    def error(candidate: Calibrated) -> float:
        pairs = zip(pytree.tree_leaves(candidate.fake()(images)), expected, strict=True)
        return sum(float((a - b).square().sum()) for a, b in pairs if isinstance(a, Tensor))

    return min(candidates, key=error)


def _checked(images: Images) -> Iterator[Tensor]:
    for index, batch in enumerate(images):
        if not torch.isfinite(batch).all():
            raise DataError(
                f"calibration batch {index} has NaN or infinite pixels", remedy="check data.mean and data.std"
            )
        yield batch.contiguous(memory_format=torch.channels_last)  # convolutions run a quarter faster


def _sites(folded: nn.Module, images: Images, rule: Profile) -> Sites:
    graph = trace(folded)
    first = next(_checked(images))
    _check_finite(Unrolled(graph).eval(), [first])
    return complete(graph, find_sites(graph, first[:1], symmetric=rule.symmetric), rule)


@torch.no_grad()
def _observe(net: nn.Module, sites: Sites, images: Images, progress: Progress) -> dict[str, Histogram]:
    """What each quantized tensor looks like over all images."""
    unrolled = Unrolled(trace(net)).eval()
    seen = {source: Histogram() for source, _ in sites.activations}

    def see(node: fx.Node, value: object) -> None:
        if node.name in seen:
            assert isinstance(value, Tensor)
            seen[node.name].add(value)

    for batch in progress.track(_checked(images), "observe", total=len(images)):
        with _fitting(batch):
            unrolled.walk(batch, see)
    for name, histogram in seen.items():
        if not (math.isfinite(histogram.low) and math.isfinite(histogram.high)):
            _check_finite(unrolled, images)  # names the layer where it began
            raise ModelError(f"the values of '{name}' reach from {histogram.low} to {histogram.high}")
    return seen


def _magnitudes(net: nn.Module, sites: Sites) -> dict[str, Tensor]:
    """The largest |w| of each output channel, (C_out,), by layer."""
    weights = {layer: net.get_submodule(layer).weight for layer in sites.layers}
    return {layer: w.detach().abs().flatten(1).amax(1) for layer, w in weights.items() if isinstance(w, Tensor)}


def _check_finite(net: Unrolled, images: Iterable[Tensor]) -> None:
    """Raise ModelError naming the first layer whose output on ``images`` has a NaN or an infinity, if there is one."""
    for batch in images:
        with _fitting(batch):
            layer = net.first_non_finite(batch)
        if layer is not None:
            raise ModelError(
                f"the output of '{layer}' has NaN or infinite values on calibration images",
                remedy="evaluate the float network: it may have diverged, or its input may not be normalised as it was",
            )


@contextmanager
def _fitting(batch: Tensor) -> Iterator[None]:
    """Turn a failure of the network on images of this shape into a DataError."""
    try:
        yield
    except RuntimeError as error:
        raise ModelError(
            f"the network does not run on calibration images of shape {tuple(batch.shape[1:])}: {error}",
            remedy="do data.input_size and data.channels fit the network?",
        ) from error
