"""Fit the weights to the quantizers: one sweep from the first layer to the last.

Each layer sees what it will get from the quantized layers before it, so that errors are corrected where the shipped
placement makes them, and those of earlier layers are not corrected twice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from compress.progress import SILENT, Progress
from compress.prune.repair.statistics import naming
from compress.quantize.fakequant import FakeActivation, FakeWeight, insert
from compress.quantize.graph import Unrolled, layer_of, trace
from compress.quantize.quantizer import Quantizers
from compress.quantize.rounding import round_layer, round_to_nearest

Correction = Literal["gptq", "bias", "none"]


@torch.no_grad()
def correct(
    net: nn.Module, quantizers: Quantizers, images: Tensor, how: Correction, progress: Progress = SILENT
) -> nn.Module:
    """A copy of ``net`` whose weights lie on the quantizers' grids.

    Args:
        net: BN-folded.
        images: (N, C, H, W), all held in memory at once with two or three layers' outputs.
        how: ``gptq`` rounds each weight so that a layer's errors cancel; ``bias`` rounds to nearest and takes the mean
            error of each output channel out of the bias (Nagel et al. 2019, arXiv:1906.04721, section 4.2); ``none``
            rounds to nearest.
    """
    result = copy.deepcopy(net)
    means = _mean_outputs(net, images) if how == "bias" else {}
    ticks = iter(progress.track(quantizers.weights, "round weights"))
    _Sweep(result, quantizers, how, means, tick=lambda: next(ticks, None)).run(images)
    return result


class _Sweep(fx.Interpreter):
    """Runs the quantized graph; a layer's weights are rounded in ``net`` just before it runs."""

    def __init__(
        self,
        net: nn.Module,
        quantizers: Quantizers,
        how: Correction,
        means: Mapping[str, Tensor],
        tick: Callable[[], object],
    ) -> None:
        super().__init__(insert(net, replace(quantizers, weights=()), FakeActivation, lambda q, _: FakeWeight(q)))
        self.net, self.how, self.means, self.tick = net, how, means, tick
        self.left = {w.layer: w for w in quantizers.weights}
        self.generator = torch.Generator().manual_seed(0)  # the pixels that ``gptq`` looks at

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        quantizer = self.left.pop(str(target), None)  # a layer that is called again keeps what the first call gave it
        if quantizer is None:
            return super().call_module(target, args, dict(kwargs))
        layer, own = self.module.get_submodule(str(target)), self.net.get_submodule(str(target))
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        assert isinstance(own, nn.Conv2d | nn.Linear)
        scale, pairs_fit = torch.tensor(quantizer.scale), quantizer.pairs_fit
        if self.how == "gptq":
            with naming(str(target), "; or set quantize.correction=none"):
                layer.weight.copy_(round_layer(layer, scale, args[0], self.generator, pairs_fit))
        else:
            layer.weight.copy_(round_to_nearest(layer.weight, scale, pairs_fit))
        output = layer(*args, **kwargs)
        if self.how == "bias" and layer.bias is not None:
            shift = self.means[str(target)] - _channel_means(layer, output)
            layer.bias.add_(shift)
            output = output + (shift[:, None, None] if isinstance(layer, nn.Conv2d) else shift)
        own.load_state_dict(layer.state_dict())
        self.tick()
        return output


def _mean_outputs(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """(C_out,) for each layer's first call: the mean of its output channels in float."""
    means: dict[str, Tensor] = {}
    graph = trace(net)

    def see(node: fx.Node, value: Any) -> None:
        layer = layer_of(graph, node)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            means.setdefault(str(node.target), _channel_means(layer, value))

    Unrolled(graph).eval().walk(images, see)
    return means


def _channel_means(layer: nn.Module, output: Tensor) -> Tensor:
    return output.mean((0, 2, 3)) if isinstance(layer, nn.Conv2d) else output.flatten(0, -2).mean(0)
