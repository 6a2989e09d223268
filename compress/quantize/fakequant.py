"""The network as INT8 will compute it, in float: each quantizer rounds in the forward pass.

The same insertion makes the network that is evaluated, the one that is trained (QAT) and the one that is exported, so
they agree on every quantizer's place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from compress.quantize.graph import trace
from compress.quantize.placement import WEIGHT_HIGH, float32
from compress.quantize.quantizer import Activation, Quantizers, Weight

Scales = Literal["frozen", "learned"]


class FakeActivation(nn.Module):
    """Round to the grid of one activation quantizer; the gradient passes where the input is in range."""

    def __init__(self, quantizer: Activation) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; returns that shape."""
        q = self.quantizer
        return torch.fake_quantize_per_tensor_affine(x.float(), q.scale, q.zero_point, q.low, q.high)


class FakeWeight(nn.Module):
    """Round a weight (C_out, ...) to the grid of its channel; the gradient passes where the weight is in range."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: Weight) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(quantizer.scale), persistent=False)
        self.register_buffer("zero_point", torch.zeros(len(quantizer.scale), dtype=torch.int32), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.fake_quantize_per_channel_affine(weight, self.scale, self.zero_point, 0, -WEIGHT_HIGH, WEIGHT_HIGH)


class LearnedActivation(FakeActivation):
    """``FakeActivation`` whose scale is trained too (LSQ: Esser et al. 2020, arXiv:1902.08153), not its zero point."""

    zero_point: Tensor

    def __init__(self, quantizer: Activation) -> None:
        super().__init__(quantizer)
        self.scale = nn.Parameter(torch.tensor([quantizer.scale]))
        self.register_buffer("zero_point", torch.tensor([float(quantizer.zero_point)]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; returns that shape."""
        q = self.quantizer
        gradient = _step_gradient(x.numel() // len(x), q.high)
        return torch._fake_quantize_learnable_per_tensor_affine(
            x.float(), _bounded(self.scale, q.scale), self.zero_point, q.low, q.high, gradient
        )

    def learned(self) -> Activation:
        """The quantizer with the scale that training arrived at."""
        return replace(self.quantizer, scale=float32(_bounded(self.scale, self.quantizer.scale).item()))


class LearnedWeight(nn.Module):
    """``FakeWeight`` whose scales are trained too."""

    zero_point: Tensor
    first: Tensor

    def __init__(self, quantizer: Weight) -> None:
        super().__init__()
        self.layer = quantizer.layer
        self.scale = nn.Parameter(torch.tensor(quantizer.scale))
        self.register_buffer("first", torch.tensor(quantizer.scale), persistent=False)
        self.register_buffer("zero_point", torch.zeros(len(quantizer.scale)), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        gradient = _step_gradient(weight[0].numel(), WEIGHT_HIGH)
        return torch._fake_quantize_learnable_per_channel_affine(
            weight, _bounded(self.scale, self.first), self.zero_point, 0, -WEIGHT_HIGH, WEIGHT_HIGH, gradient
        )

    def learned(self) -> Weight:
        """The quantizer with the scales that training arrived at."""
        return Weight(self.layer, tuple(float32(s) for s in _bounded(self.scale, self.first).tolist()))


def insert(
    net: nn.Module,
    quantizers: Quantizers,
    activation: Callable[[Activation], nn.Module],
    weight: Callable[[Weight, Tensor], nn.Module],
) -> fx.GraphModule:
    """A copy of ``net`` as a graph that calls a module at every quantizer's place.

    Args:
        net: BN-folded, as calibrated.
        activation: makes the module that a tensor goes through.
        weight: makes the module that a layer's weight goes through, from the quantizer and the float weight.
    """
    graph = trace(copy.deepcopy(net))
    nodes = {node.name: node for node in graph.graph.nodes}
    for index, q in enumerate(quantizers.activations):
        source, name = nodes[q.source], f"quantizer_{index}"
        users = [nodes[q.user]] if q.user else list(source.users)
        graph.add_submodule(name, activation(q))
        with graph.graph.inserting_after(source):
            inserted = graph.graph.call_module(name, (source,))
        for user in users:
            user.replace_input_with(source, inserted)
    for w in quantizers.weights:
        layer = graph.get_submodule(w.layer)
        original = layer.weight
        assert isinstance(original, Tensor)
        parametrize.register_parametrization(layer, "weight", weight(w, original.detach()))
    graph.recompile()
    return graph


def fake_quantized(net: nn.Module, quantizers: Quantizers, scales: Scales = "frozen") -> fx.GraphModule:
    """A copy of ``net`` that computes what INT8 will, differentiable (straight-through, Bengio et al. 2013).

    Args:
        scales: ``frozen`` scales are constants; ``learned`` ones are parameters beside the weights and biases.
    """
    if scales == "frozen":
        return insert(net, quantizers, FakeActivation, lambda q, _: FakeWeight(q))
    return insert(net, quantizers, LearnedActivation, lambda q, _: LearnedWeight(q))


def trained(net: nn.Module, quantizers: Quantizers, fake: nn.Module) -> tuple[nn.Module, Quantizers]:
    """A copy of ``net``, and its quantizers, as ``fake = fake_quantized(net, quantizers, ...)`` was trained."""
    result = copy.deepcopy(net)
    state = {key.replace("parametrizations.weight.original", "weight"): v for key, v in fake.state_dict().items()}
    result.load_state_dict({key: state.get(key, old) for key, old in result.state_dict().items()})
    activations = {m.quantizer: m.learned() for m in fake.modules() if isinstance(m, LearnedActivation)}
    weights = {m.layer: m.learned() for m in fake.modules() if isinstance(m, LearnedWeight)}
    return result.eval(), replace(
        quantizers,
        activations=tuple(activations.get(a, a) for a in quantizers.activations),
        weights=tuple(weights.get(w.layer, w) for w in quantizers.weights),
    )


def _bounded(scale: Tensor, first: Tensor | float) -> Tensor:
    """At least half of what it was: above 0, and no bias, in steps of two scales, outgrows int32."""
    return torch.maximum(scale, torch.as_tensor(first, device=scale.device) / 2)


def _step_gradient(values: int, high: int) -> float:
    """What a scale's gradient is multiplied by, so that scales and weights learn alike (LSQ, section 2.2)."""
    return float((values * high) ** -0.5)
