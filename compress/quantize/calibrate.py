"""Post-training quantization: NNCF observes the ranges and corrects the biases; its result is read into our own values.

NNCF inserts quantizers where its propagation rules want them, collects min and max of each tensor and of each weight
channel, and shifts every bias by its estimate of the mean error that quantization makes there (fast bias correction).
The estimate can do harm: on an ImageNet ResNet-18 it cost about 1 dB of the SQNR. So the corrected biases are kept
only where they lessen the error of the outputs. After that no NNCF object is left: see ``quantizer.py``.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from calibration.errors import DataError
from compress.errors import ModelError
from compress.models.cifar import SelectPad
from compress.progress import SILENT, Progress
from compress.quantize.fakequant import fake_quantized
from compress.quantize.fold import fold
from compress.quantize.graph import PREFIX, Unrolled, layer_of, trace
from compress.quantize.placement import Range, place, profile
from compress.quantize.quantizer import Quantizers

_JUDGED = 32  # images on which the bias correction is judged


@dataclass(frozen=True)
class Calibrated:
    """A BN-folded float network, and what is INT8 in it.

    Attributes:
        bias_corrected: whether the network's biases are NNCF's corrected ones.
    """

    net: nn.Module
    quantizers: Quantizers
    bias_corrected: bool

    def fake(self) -> fx.GraphModule:
        """The network as INT8 computes it; see ``fake_quantized``."""
        return fake_quantized(self.net, self.quantizers)


class Images(Protocol):
    """Batches (N, C, H, W) of preprocessed images; a list of tensors is one. Iterated several times."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Tensor]: ...


def calibrate(net: nn.Module, images: Images, target: str, progress: Progress = SILENT) -> Calibrated:
    """Fold, observe, correct and place. Deterministic: the same net and images give the same scales, bit for bit.

    Args:
        net: float, on the CPU; not changed.
        images: what the ranges are observed on. Each image counts alike, whatever the batch size.
        target: a name in ``placement.PROFILES``.

    Raises:
        DataError: no images, or images that are not finite.
        ModelError: the net cannot be traced, its weights or activations are not finite (names the layer), or nothing
            in it can be quantized.
        ConfigError: an unknown target.
    """
    rule = profile(target)
    if len(images) == 0:
        raise DataError("the calibration sample is empty", remedy="set quantize.calibration_images above 0")
    folded = fold(net)
    for name, value in folded.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ModelError(f"'{name}' has NaN or infinite values", remedy="load another checkpoint, or train again")
    graph = trace(folded)
    unrolled = Unrolled(graph).eval()
    _check_finite(unrolled, itertools.islice(_checked(images), 1))
    quantized = _quantize(unrolled, _Tracked(images, progress), symmetric=rule.signed)
    ranges, magnitudes = _read(quantized, graph)
    if not magnitudes:
        raise ModelError("nothing in the network can be quantized", remedy="it needs Conv2d or Linear layers")
    for r in ranges:
        if not (math.isfinite(r.low) and math.isfinite(r.high)):
            _check_finite(unrolled, images)  # names the layer where it began
            raise ModelError(f"the calibrated range of '{r.source}' is {r.low} to {r.high}")
    plain = Calibrated(folded, place(folded, target, ranges, magnitudes), bias_corrected=False)
    net = _with_biases(folded, quantized, graph)
    corrected = Calibrated(net, place(net, target, ranges, magnitudes), bias_corrected=True)
    return _closest((plain, corrected), folded, images)


@torch.no_grad()
def _closest(candidates: Sequence[Calibrated], reference: nn.Module, images: Images) -> Calibrated:
    """The candidate with the least squared error in the network's outputs, on the first calibration images."""
    fakes, errors, seen = [candidate.fake() for candidate in candidates], [0.0] * len(candidates), 0
    for batch in images:
        expected = pytree.tree_leaves(reference(batch))
        for i, fake in enumerate(fakes):
            pairs = zip(pytree.tree_leaves(fake(batch)), expected, strict=True)
            errors[i] += sum(float((a - b).square().sum()) for a, b in pairs if isinstance(a, Tensor))
        seen += len(batch)
        if seen >= _JUDGED:
            break
    return candidates[errors.index(min(errors))]


def _checked(images: Images) -> Iterator[Tensor]:
    for index, batch in enumerate(images):
        if not torch.isfinite(batch).all():
            raise DataError(
                f"calibration batch {index} has NaN or infinite pixels", remedy="check data.mean and data.std"
            )
        yield batch


@dataclass(frozen=True)
class _Tracked:
    """The images as NNCF's data source: shows how far it is."""

    images: Images
    progress: Progress

    def __iter__(self) -> Iterator[Tensor]:
        return self.progress.track(_checked(self.images), "calibrate", total=len(self.images))


def _quantize(net: Unrolled, images: _Tracked, *, symmetric: bool) -> nn.Module:
    with _nncf() as nncf:
        inside = [f"{PREFIX}{node.name}/.*" for node in net.nodes if _is_select_pad(net, node)]
        presets, ranges = nncf.QuantizationPreset, nncf.quantization.range_estimator
        parameters = nncf.quantization.advanced_parameters
        try:
            result: nn.Module = nncf.quantize(
                net,
                nncf.Dataset(images),
                preset=presets.PERFORMANCE if symmetric else presets.MIXED,
                subset_size=len(images.images),
                ignored_scope=nncf.IgnoredScope(patterns=inside) if inside else None,
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    batchwise_statistics=True,
                    activations_quantization_params=parameters.QuantizationParameters(per_channel=False),
                    # the extremes of all images: their mean over images, NNCF's default, clips (ResNet-18: 1 dB worse)
                    activations_range_estimator_params=ranges.RangeEstimatorParametersSet.MINMAX,
                    overflow_fix=nncf.OverflowFix.DISABLE,  # all 8 bits: VNNI and TensorRT accumulate in int32
                ),
            )
        except DataError:
            raise
        except Exception as error:
            _check_finite(net, images.images)
            raise ModelError(f"NNCF cannot quantize the network: {error}") from error
    return result


def _is_select_pad(net: Unrolled, node: fx.Node) -> bool:
    return isinstance(getattr(net, PREFIX + node.name, None), SelectPad)


def _check_finite(net: Unrolled, images: Iterable[Tensor]) -> None:
    """Raise ModelError naming the first layer whose output on ``images`` has a NaN or an infinity, if there is one."""
    for batch in images:
        try:
            layer = net.first_non_finite(batch)
        except RuntimeError as error:
            raise ModelError(
                f"the network does not run on calibration images of shape {tuple(batch.shape[1:])}: {error}",
                remedy="do data.input_size and data.channels fit the network?",
            ) from error
        if layer is not None:
            raise ModelError(
                f"the output of '{layer}' has NaN or infinite values on calibration images",
                remedy="evaluate the float network: it may have diverged, or its input may not be normalised as it was",
            )


@contextlib.contextmanager
def _nncf() -> Iterator[Any]:
    """NNCF without telemetry, output or compiler.

    Its C++ quantizer costs a C compiler and a minute at the first use. Calibration runs quantizers on weights and on
    one averaged input a layer only, which NNCF's own torch reference does in no time that a user would notice.
    """
    os.environ.setdefault("NNCF_CI", "1")  # no telemetry: no network unless the user asks for it
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns that there is no GPU
    with contextlib.redirect_stdout(io.StringIO()):
        import nncf
        from nncf.torch.quantization.extensions import QuantizedFunctionsCPU
        from nncf.torch.quantization.reference import ReferenceBackendType, ReferenceQuantize

        logger = logging.getLogger("nncf")
        level, loaded = logger.level, QuantizedFunctionsCPU._loaded_namespace
        logger.setLevel(logging.ERROR)
        reference = ReferenceQuantize(ReferenceBackendType.TORCH)
        QuantizedFunctionsCPU._loaded_namespace = SimpleNamespace(Quantize_forward=reference.forward)
        try:
            yield nncf
        finally:
            logger.setLevel(level)
            QuantizedFunctionsCPU._loaded_namespace = loaded


def _read(quantized: nn.Module, graph: fx.GraphModule) -> tuple[list[Range], dict[str, Tensor]]:
    """Ranges of activations, and the largest |w| of each output channel of each quantized layer."""
    from nncf.torch.function_hook.hook_storage import decode_hook_name
    from nncf.torch.function_hook.wrapper import get_hook_storage

    nodes = {node.name: node for node in graph.graph.nodes}
    ranges: list[Range] = []
    magnitudes: dict[str, Tensor] = {}
    for name, hook in get_hook_storage(quantized).named_hooks():
        kind, operation, port = decode_hook_name(name)
        node = _node(nodes, operation)
        low, high = (end.detach().flatten() for end in hook.get_input_low_input_high())
        if kind == "pre_hooks" and port == 1 and isinstance(layer_of(graph, node), nn.Conv2d | nn.Linear):
            magnitudes[str(node.target)] = torch.maximum(-low, high)
        elif low.numel() != 1:
            raise ModelError(f"'{node.name}' uses weights that belong to no layer", remedy="use nn.Conv2d or nn.Linear")
        elif kind == "post_hooks":
            ranges.append(Range(node.name, None, float(low), float(high)))
        elif port < len(node.all_input_nodes):  # else the weight of a norm, which engines compute in float
            ranges.append(Range(node.all_input_nodes[port].name, node.name, float(low), float(high)))
    order = {name: index for index, name in enumerate(nodes)}
    return sorted(ranges, key=lambda r: (order[r.source], r.user or "")), magnitudes


def _node(nodes: dict[str, fx.Node], operation: str) -> fx.Node:
    """The node of an NNCF operation name such as ``node_layer1_0_conv1/conv2d/0`` (or ``input``)."""
    scope = operation.partition("/")[0]
    if scope.startswith(PREFIX):
        return nodes[scope.removeprefix(PREFIX)]
    return next(node for node in nodes.values() if node.op == "placeholder")


def _with_biases(folded: nn.Module, quantized: nn.Module, graph: fx.GraphModule) -> nn.Module:
    """A copy of ``folded`` with the biases that NNCF corrected."""
    result = copy.deepcopy(folded)
    for node in graph.graph.nodes:
        if isinstance(layer_of(graph, node), nn.Conv2d | nn.Linear):
            corrected = quantized.get_submodule(PREFIX + node.name).bias
            if isinstance(corrected, Tensor):
                result.get_submodule(str(node.target)).bias = nn.Parameter(corrected.detach().clone())
    return result
