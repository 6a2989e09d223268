"""The network as INT8 will compute it, in float: each quantizer rounds in the forward pass.

The same insertion makes the network that is evaluated, the one that is trained (QAT) and the one that is exported, so
they agree on every quantizer's place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from compress.quantize.graph import trace
from compress.quantize.placement import WEIGHT_HIGH
from compress.quantize.quantizer import Activation, Quantizers, Weight


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


def fake_quantized(net: nn.Module, quantizers: Quantizers) -> fx.GraphModule:
    """A copy of ``net`` that computes what INT8 will, differentiable (straight-through, Bengio et al. 2013).

    Scales are constants; the parameters to train are the network's own weights and biases.
    """
    return insert(net, quantizers, FakeActivation, lambda q, _: FakeWeight(q))


def trained(net: nn.Module, fake: nn.Module) -> nn.Module:
    """A copy of ``net`` with the parameters that ``fake = fake_quantized(net, ...)`` was trained to."""
    result = copy.deepcopy(net)
    state = {key.replace("parametrizations.weight.original", "weight"): v for key, v in fake.state_dict().items()}
    result.load_state_dict({key: state.get(key, old) for key, old in result.state_dict().items()})
    return result.eval()
