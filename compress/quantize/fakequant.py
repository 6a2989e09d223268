"""The network as INT8 will compute it, in float: each quantizer rounds in the forward pass.

The same insertion makes the network that is evaluated, the one that is trained (QAT) and the one that is exported, so
they agree on every quantizer's place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from compress.quantize.graph import trace
from compress.quantize.grid import float32
from compress.quantize.pairs import PAIR_HIGH
from compress.quantize.quantizer import WEIGHT_HIGH, Activation, Quantizers, Weight
from compress.quantize.rounding import in_steps, index_pairs, nearest, per_channel

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


class _Nearest(torch.autograd.Function):
    """``nearest`` whose gradient is that of its limits: rounding counts as the identity (Bengio et al. 2013).

    A weight out of range gets none. Two weights whose pair is at its limit can only give to one another: the gradient
    of the projection onto w0 + w1 = 128.
    """

    @staticmethod
    def forward(ctx: Any, steps: Tensor, pairs_fit: bool) -> Tensor:
        whole, ctx.pairs_fit = nearest(steps, pairs_fit), pairs_fit
        ctx.save_for_backward(steps, whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        steps, whole = ctx.saved_tensors
        grad, values = grads[0].flatten(1).clone(), steps.round().clamp(-WEIGHT_HIGH, WEIGHT_HIGH).flatten(1)
        limits = []
        for chosen in index_pairs(steps) if ctx.pairs_fit else ():
            sums = values[:, chosen].sum(2, keepdim=True)
            excess = sums - sums.clamp(-PAIR_HIGH, PAIR_HIGH)
            values[:, chosen] -= excess / 2
            limits.append((chosen, excess != 0))
        for chosen, limited in reversed(limits):
            pair = grad[:, chosen]
            grad[:, chosen] = torch.where(limited, (pair - pair.flip(2)) / 2, pair)
        return grad.reshape(whole.shape) * (steps.abs() <= WEIGHT_HIGH + 0.5), None


class _Scaled(torch.autograd.Function):
    """The identity; its gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


def _fake(weight: Tensor, scale: Tensor, pairs_fit: bool) -> Tensor:
    whole: Tensor = _Nearest.apply(in_steps(weight, scale), pairs_fit)
    return whole * per_channel(scale, weight)


class FakeWeight(nn.Module):
    """Round a weight (C_out, ...) to the grid of its channel; the gradient passes where the weight is in range."""

    scale: Tensor

    def __init__(self, quantizer: Weight) -> None:
        super().__init__()
        self.pairs_fit = quantizer.pairs_fit
        self.register_buffer("scale", torch.tensor(quantizer.scale), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return _fake(weight, self.scale, self.pairs_fit)


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

    first: Tensor

    def __init__(self, quantizer: Weight) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.scale = nn.Parameter(torch.tensor(quantizer.scale))
        self.register_buffer("first", torch.tensor(quantizer.scale), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        gradient = _step_gradient(weight[0].numel(), WEIGHT_HIGH)
        scale: Tensor = _Scaled.apply(_bounded(self.scale, self.first), gradient)
        return _fake(weight, scale, self.quantizer.pairs_fit)

    def learned(self) -> Weight:
        """The quantizer with the scales that training arrived at."""
        return replace(self.quantizer, scale=tuple(float32(s) for s in _bounded(self.scale, self.first).tolist()))


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


@torch.no_grad()
def at_quantizers(fake: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What the quantized tensors of a fake-quantized network say, by the name of the quantizer's module."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, module in fake.named_modules():
        if isinstance(module, FakeActivation):

            def see(_: nn.Module, __: object, output: Tensor, name: str = name) -> None:
                seen[name] = output.clone()  # a residual block may add to it in place

            handles.append(module.register_forward_hook(see))
    fake(images)
    for handle in handles:
        handle.remove()
    return seen


def trained(net: nn.Module, quantizers: Quantizers, fake: nn.Module) -> tuple[nn.Module, Quantizers]:
    """A copy of ``net``, and its quantizers, as ``fake = fake_quantized(net, quantizers, ...)`` was trained."""
    result = copy.deepcopy(net)
    state = {key.replace("parametrizations.weight.original", "weight"): v for key, v in fake.state_dict().items()}
    result.load_state_dict({key: state.get(key, old) for key, old in result.state_dict().items()})
    activations = {m.quantizer: m.learned() for m in fake.modules() if isinstance(m, LearnedActivation)}
    weights = {m.quantizer.layer: m.learned() for m in fake.modules() if isinstance(m, LearnedWeight)}
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
