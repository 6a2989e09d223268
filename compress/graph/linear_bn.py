"""A linear layer and the batch norm behind it, as one linear map.

A convolution or fully connected layer and the norm that reads it compute y = A x + b together. Repair changes A and b;
when they are written back, the norm gets real statistics, so that the network can be trained further.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from compress.graph.tracing import Trace


@dataclass(frozen=True)
class LinearBN:
    """A linear layer with its batch norm, in a network.

    Attributes:
        layer: a Conv2d (ungrouped) or Linear.
        norm: the BatchNorm2d that is the only reader of the layer; None if there is none.
        node: graph node of the layer's call.
        output: graph node of y.
        shifts: whether there is a b, in a norm or a bias.
    """

    layer: str
    norm: str | None
    node: str
    output: str
    shifts: bool


def linear_bns(traced: Trace) -> tuple[LinearBN, ...]:
    """The linear + BN pairs of a network in the order of execution; without grouped layers and layers called twice."""
    calls: dict[str, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    found = []
    for layer, nodes in calls.items():
        module = traced.modules[layer]
        if len(nodes) > 1 or not (
            isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        ):
            continue
        (node,) = nodes
        norm = _norm(node, traced, calls)
        shifts = norm is not None or module.bias is not None
        found.append(LinearBN(layer, str(norm.target) if norm else None, node.name, (norm or node).name, shifts))
    return tuple(found)


def _norm(node: fx.Node, traced: Trace, calls: dict[str, list[fx.Node]]) -> fx.Node | None:
    if len(node.users) != 1:
        return None
    (user,) = node.users
    norm = traced.modules[str(user.target)] if user.op == "call_module" else None
    if not isinstance(norm, nn.BatchNorm2d) or not norm.affine or not norm.track_running_stats:
        return None
    return user if len(calls[str(user.target)]) == 1 else None


def read(net: nn.Module, place: LinearBN) -> tuple[Tensor, Tensor]:
    """Read A (inputs * kernel, outputs) and b (outputs,), in float64; rows are ordered as weights are stored."""
    module = net.get_submodule(place.layer)
    assert isinstance(module, nn.Conv2d | nn.Linear)
    weight = module.weight.detach().flatten(1).T.double()
    bias = module.bias.detach().double() if module.bias is not None else weight.new_zeros(weight.shape[1])
    if place.norm is None:
        return weight, bias
    norm = net.get_submodule(place.norm)
    assert isinstance(norm, nn.BatchNorm2d)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    gain = norm.weight.detach().double() / (variance.double() + norm.eps).sqrt()
    return weight * gain, (bias - mean.double()) * gain + norm.bias.detach().double()


@torch.no_grad()
def write(net: nn.Module, place: LinearBN, a: Tensor, b: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Write weights and norm so that the layer computes y = a x + b.

    The norm gets the statistics of a x, with the scale and shift that give y. If there is neither a norm nor a bias,
    there is no b.

    Args:
        a, b: see ``read``.
        mean, variance: (outputs,) of a x on real images. Values other than the true ones do not change y.

    Raises:
        FloatingPointError: they are not finite in float32.
    """
    if not all(value.float().isfinite().all() for value in (a, b, mean, variance)):
        raise FloatingPointError("the solution has infinite values")
    module = net.get_submodule(place.layer)
    assert isinstance(module, nn.Conv2d | nn.Linear)
    module.weight.copy_(a.T.reshape(module.weight.shape))
    if place.norm is None:
        if module.bias is not None:
            module.bias.copy_(b)
        return
    norm = net.get_submodule(place.norm)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    if module.bias is not None:
        module.bias.zero_()
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(b + mean)
