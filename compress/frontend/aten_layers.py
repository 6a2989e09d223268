"""ATen operations that own tensors, and the standard layers that they become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.frontend.layers import FrozenBatchNorm


@dataclass(frozen=True)
class Call:
    """A call of an ATen operation that owns tensors.

    Attributes:
        arguments: by the names of its schema.
        tensors: the network's tensors among them, by the attribute of the layer that holds them.
        owner: the user's module whose tensors these are, if there is one.
        shape: of the operation's input, for a batch; the batch size may be symbolic.
        trains: for a batch norm, whether it uses the statistics of its batch in training mode.
    """

    arguments: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    owner: nn.Module | None
    shape: tuple[Any, ...]
    trains: bool

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def has(self, attribute: str) -> bool:
        return attribute in self.tensors

    @property
    def weight(self) -> Tensor:
        return self.tensors["weight"]

    @property
    def channels(self) -> int:
        return int(self.shape[1])


@dataclass(frozen=True)
class Layer:
    """A standard layer.

    Attributes:
        make: makes it, without tensors, from a call. Raises ValueError where no layer computes such a call.
        tensors: which argument of the call each of its tensors is, by the layer's attribute.
    """

    make: Callable[[Call], nn.Module]
    tensors: Mapping[str, str]


def _pair(value: Any) -> Any:
    """One number as two."""
    value = tuple(value)
    return value * 2 if len(value) == 1 else value


def _conv(call: Call) -> nn.Module:
    outputs, inputs, *kernel = call.weight.shape
    padding = call["padding"] if isinstance(call["padding"], str) else _pair(call["padding"])
    stride, dilation, groups = _pair(call["stride"]), _pair(call["dilation"]), call["groups"]
    bias = call.has("bias")
    return nn.Conv2d(inputs * groups, outputs, _pair(kernel), stride, padding, dilation, groups, bias, device="meta")


def _conv_transpose(call: Call) -> nn.Module:
    inputs, outputs, *kernel = call.weight.shape
    stride, padding, extra, dilation = (_pair(call[n]) for n in ("stride", "padding", "output_padding", "dilation"))
    groups, bias, size = call["groups"], call.has("bias"), _pair(kernel)
    with torch.device("meta"):
        return nn.ConvTranspose2d(inputs, outputs * groups, size, stride, padding, extra, groups, bias, dilation)


def _linear(call: Call) -> nn.Module:
    outputs, inputs = call.weight.shape
    return nn.Linear(inputs, outputs, call.has("bias"), device="meta")


def _batch_norm(call: Call) -> nn.Module:
    tracked = call.has("running_mean")
    if tracked and call["training"]:
        raise ValueError("a batch norm that uses the statistics of its batch in eval mode, and keeps running ones")
    owner = call.owner
    momentum = owner.momentum if isinstance(owner, nn.modules.batchnorm._BatchNorm) else call["momentum"]
    kind = nn.BatchNorm2d if len(call.shape) == 4 else nn.BatchNorm1d
    if tracked and not call.trains and kind is nn.BatchNorm2d:
        kind = FrozenBatchNorm
    return kind(call.channels, call["eps"], momentum, call.has("weight"), tracked, device="meta")


def _instance_norm(call: Call) -> nn.Module:
    tracked, affine = call.has("running_mean"), call.has("weight")
    return nn.InstanceNorm2d(call.channels, call["eps"], call["momentum"], affine, tracked, device="meta")


def _group_norm(call: Call) -> nn.Module:
    return nn.GroupNorm(call["num_groups"], call.channels, call["eps"], call.has("weight"), device="meta")


def _layer_norm(call: Call) -> nn.Module:
    return nn.LayerNorm(call["normalized_shape"], call["eps"], call.has("weight"), device="meta")


_AFFINE = {"weight": "weight", "bias": "bias"}
_STATISTICS = {**_AFFINE, "running_mean": "running_mean", "running_var": "running_var"}

LAYERS: dict[str, Layer] = {
    "aten.conv2d.default": Layer(_conv, _AFFINE),
    "aten.conv2d.padding": Layer(_conv, _AFFINE),
    "aten.conv_transpose2d.input": Layer(_conv_transpose, _AFFINE),
    "aten.linear.default": Layer(_linear, _AFFINE),
    "aten.batch_norm.default": Layer(_batch_norm, _STATISTICS),
    "aten.instance_norm.default": Layer(_instance_norm, _STATISTICS),
    "aten.group_norm.default": Layer(_group_norm, _AFFINE),
    "aten.layer_norm.default": Layer(_layer_norm, _AFFINE),
    "aten.prelu.default": Layer(lambda call: nn.PReLU(call.weight.numel(), device="meta"), {"weight": "weight"}),
}
"""By the name of the ATen operation."""

DROPOUTS: dict[str, Callable[[float], nn.Module]] = {
    "aten.dropout.default": nn.Dropout,
    "aten.feature_dropout.default": nn.Dropout2d,
    "aten.alpha_dropout.default": nn.AlphaDropout,
    "aten.feature_alpha_dropout.default": nn.FeatureAlphaDropout,
}


def put(module: nn.Module, attribute: str, tensor: Tensor) -> None:
    """Give a layer its tensor: a parameter stays one, anything else is a buffer."""
    module._parameters.pop(attribute, None)
    module._buffers.pop(attribute, None)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(attribute, tensor)
    else:
        module.register_buffer(attribute, tensor)


def with_tensors(made: nn.Module, call: Call) -> nn.Module:
    """A layer made from a call, with the call's tensors in place of those on the meta device."""
    for attribute, tensor in call.tensors.items():
        put(made, attribute, tensor)
    if getattr(made, "num_batches_tracked", None) is not None:
        counter = getattr(call.owner, "num_batches_tracked", None)
        device = call.tensors["running_mean"].device
        made.num_batches_tracked = torch.zeros((), dtype=torch.long, device=device) if counter is None else counter
    return made
