"""The layer types that have channels, in one table: how each is described, cut, and what it costs.

A row is a ``LayerKind``. The table determines what pruning cuts, what ``model.json`` says of a layer, how the cost
follows from the width, and which layers belong to a segment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict  # before Python 3.12 pydantic needs this one

from compress.frontend.layers import FrozenBatchNorm, Removed
from compress.models.cifar import SelectPad
from compress.parse import Finite, Size

Shape = dict[str, Any]
Pair = Annotated[list[Annotated[int, Field(ge=0, le=4096)]], Field(min_length=2, max_length=2)]


class ConvShape(TypedDict):
    type: Literal["Conv2d"]
    in_channels: Size
    out_channels: Size
    kernel_size: Pair
    stride: Pair
    padding: Pair | Literal["same", "valid"]
    dilation: Pair
    groups: Size
    padding_mode: Literal["zeros"]  # any other is an operation of its own in a raised network
    bias: bool


class NormShape(TypedDict):
    type: Literal["BatchNorm2d", "FrozenBatchNorm", "BatchNorm1d", "InstanceNorm2d"]
    num_features: Size
    eps: Finite
    momentum: Finite | None
    affine: bool
    track_running_stats: bool


class GroupNormShape(TypedDict):
    type: Literal["GroupNorm"]
    num_groups: Size
    num_channels: Size
    eps: Finite
    affine: bool


class PReLUShape(TypedDict):
    type: Literal["PReLU"]
    num_parameters: Size


class LinearShape(TypedDict):
    type: Literal["Linear"]
    in_features: Size
    out_features: Size
    bias: bool


class SelectPadShape(TypedDict):
    type: Literal["SelectPad"]
    source: list[Annotated[int, Field(ge=-1, lt=2**31)]]
    stride: Annotated[int, Field(ge=1, le=4096)]


class Unshaped(TypedDict):
    type: Literal["Identity", "Removed"]


AnyShape = Annotated[
    ConvShape | NormShape | GroupNormShape | PReLUShape | LinearShape | SelectPadShape | Unshaped,
    Field(discriminator="type"),
]
"""What ``model.json`` holds for a layer."""


class LayerSize(NamedTuple):
    """The sizes from which a layer's cost follows: it has ``kernel * inputs * outputs + per_output * outputs``
    parameters, and ``kernel * inputs * outputs`` multiply-accumulates per position.

    Attributes:
        inputs: channels that each output reads; in a grouped convolution the channels of one group.
        kernel: weights for each pair of an input and an output; 0 for a layer that does not multiply by weights.
        per_output: further parameters for each output, such as a bias.
        grouped: cutting removes whole groups, so ``inputs`` does not change.
    """

    inputs: int
    outputs: int
    kernel: int
    per_output: int
    grouped: bool = False


@dataclass(frozen=True)
class LayerKind:
    """A row of the table: one type of layer.

    Attributes:
        shape: the constructor arguments of a layer, as ``model.json`` holds them.
        size: the sizes from which its cost follows; None for a layer without parameters.
        cut: makes a copy without the inputs and the outputs at some positions; None for a layer that is never cut.
    """

    shape: Callable[[Any], Shape]
    size: Callable[[Any], LayerSize] | None = None
    cut: Callable[[Any, set[int], set[int]], nn.Module] | None = None


def _conv_shape(conv: nn.Conv2d) -> Shape:
    keys = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {**{key: getattr(conv, key) for key in keys}, "bias": conv.bias is not None}


def _conv_size(conv: nn.Conv2d) -> LayerSize:
    kernel = conv.kernel_size[0] * conv.kernel_size[1]
    return LayerSize(
        conv.in_channels // conv.groups, conv.out_channels, kernel, int(conv.bias is not None), conv.groups > 1
    )


def _cut_conv(conv: nn.Conv2d, gone_inputs: set[int], gone_outputs: set[int]) -> nn.Module:
    inputs, outputs = _rest(conv.in_channels, gone_inputs), _rest(conv.out_channels, gone_outputs)
    state = {name: value[outputs] for name, value in conv.state_dict().items()}
    groups = conv.groups
    if groups == 1:
        state["weight"] = state["weight"][:, inputs]
    else:  # whole groups went, on both sides
        groups = len(inputs) * groups // conv.in_channels
    return _rebuilt(conv, state, in_channels=len(inputs), out_channels=len(outputs), groups=groups)


_Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm2d


def _norm_shape(norm: _Norm) -> Shape:
    keys = ("num_features", "eps", "momentum", "affine", "track_running_stats")
    return {key: getattr(norm, key) for key in keys}


def _norm_size(norm: _Norm) -> LayerSize:
    return LayerSize(0, norm.num_features, 0, 2 * int(norm.affine))


def _cut_norm(norm: _Norm, gone_inputs: set[int], gone_outputs: set[int]) -> nn.Module:
    features = _rest(norm.num_features, gone_outputs)
    return _rebuilt(norm, _only(norm, features), num_features=len(features))


def _group_norm_shape(norm: nn.GroupNorm) -> Shape:
    return {key: getattr(norm, key) for key in ("num_groups", "num_channels", "eps", "affine")}


def _group_norm_size(norm: nn.GroupNorm) -> LayerSize:
    return LayerSize(0, norm.num_channels, 0, 2 * int(norm.affine))


def _cut_group_norm(norm: nn.GroupNorm, gone_inputs: set[int], gone_outputs: set[int]) -> nn.Module:
    """Whole groups are removed."""
    channels = _rest(norm.num_channels, gone_outputs)
    groups = len(channels) * norm.num_groups // norm.num_channels
    return _rebuilt(norm, _only(norm, channels), num_channels=len(channels), num_groups=groups)


def _cut_prelu(prelu: nn.PReLU, gone_inputs: set[int], gone_outputs: set[int]) -> nn.Module:
    channels = _rest(prelu.num_parameters, gone_outputs)
    return _rebuilt(prelu, _only(prelu, channels), num_parameters=len(channels))


def _linear_shape(linear: nn.Linear) -> Shape:
    return {
        "in_features": linear.in_features,
        "out_features": linear.out_features,
        "bias": linear.bias is not None,
    }


def _linear_size(linear: nn.Linear) -> LayerSize:
    return LayerSize(linear.in_features, linear.out_features, 1, int(linear.bias is not None))


def _cut_linear(linear: nn.Linear, gone_inputs: set[int], gone_outputs: set[int]) -> nn.Module:
    inputs, outputs = _rest(linear.in_features, gone_inputs), _rest(linear.out_features, gone_outputs)
    state = {name: value[outputs] for name, value in linear.state_dict().items()}
    state["weight"] = state["weight"][:, inputs]
    return _rebuilt(linear, state, in_features=len(inputs), out_features=len(outputs))


def _select_pad_shape(pad: SelectPad) -> Shape:
    return {"source": pad.source, "stride": pad.stride}


def _cut_select_pad(pad: SelectPad, gone_inputs: set[int], gone_outputs: set[int]) -> nn.Module:
    """Outputs whose input is removed become zeros; the sources of the other outputs are renumbered."""
    size = 1 + max(*pad.source, *gone_inputs, 0)
    place = {position: rank for rank, position in enumerate(_rest(size, gone_inputs))}
    source = [place.get(s, -1) for k, s in enumerate(pad.source) if k not in gone_outputs]
    return SelectPad(source, pad.stride).to(pad.gate.device, pad.gate.dtype)


KINDS: dict[type[nn.Module], LayerKind] = {
    nn.Conv2d: LayerKind(_conv_shape, _conv_size, _cut_conv),
    **dict.fromkeys(
        (nn.BatchNorm2d, FrozenBatchNorm, nn.BatchNorm1d, nn.InstanceNorm2d),
        LayerKind(_norm_shape, _norm_size, _cut_norm),
    ),
    nn.GroupNorm: LayerKind(_group_norm_shape, _group_norm_size, _cut_group_norm),
    nn.PReLU: LayerKind(
        lambda prelu: {"num_parameters": prelu.num_parameters},
        lambda prelu: LayerSize(0, prelu.num_parameters, 0, 1),
        _cut_prelu,
    ),
    nn.Linear: LayerKind(_linear_shape, _linear_size, _cut_linear),
    SelectPad: LayerKind(_select_pad_shape, None, _cut_select_pad),
    nn.Identity: LayerKind(lambda _: {}),
    Removed: LayerKind(lambda _: {}),
}

CHANNEL_LAYERS = tuple(kind for kind, row in KINDS.items() if row.cut is not None)
"""The layer types whose inputs or outputs can be cut."""


def shape_of(module: nn.Module) -> Shape | None:
    """``{"type": ..., <constructor arguments>}`` of one layer; None for a layer that surgery does not change.

    >>> shape_of(nn.Linear(4, 2))
    {'type': 'Linear', 'in_features': 4, 'out_features': 2, 'bias': True}
    """
    row = KINDS.get(type(module))
    return None if row is None else {"type": type(module).__name__, **plain(row.shape(module))}


def size_of(module: nn.Module) -> LayerSize | None:
    """The sizes from which a layer's cost follows; None for a layer without parameters, or of a type not in the table.

    >>> size_of(nn.Conv2d(4, 8, 3, groups=2, bias=False))
    LayerSize(inputs=2, outputs=8, kernel=9, per_output=0, grouped=True)
    """
    row = KINDS.get(type(module))
    return None if row is None or row.size is None else row.size(module)


def cut_layer(module: nn.Module, gone_inputs: set[int], gone_outputs: set[int]) -> nn.Module:
    """Make a copy of a layer without some channels.

    Raises:
        KeyError: the table has no row for the layer, or its row has no channels to cut.
    """
    row = KINDS[type(module)]
    if row.cut is None:
        raise KeyError(type(module))
    return row.cut(module, gone_inputs, gone_outputs)


def make_layer(shape: Mapping[str, Any]) -> nn.Module:
    """Make a new layer of the given shape, with fresh weights."""
    types: Mapping[str, Callable[..., nn.Module]] = {kind.__name__: kind for kind in KINDS}
    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in shape.items() if key != "type"}
    return types[shape["type"]](**arguments)


def plain(shape: Mapping[str, Any]) -> Shape:
    """Convert a shape to the form that JSON holds: lists in place of tuples."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in shape.items()}


def _rebuilt(old: nn.Module, state: Mapping[str, Tensor], **changes: Any) -> nn.Module:
    """A layer like ``old`` with other sizes and the given tensors; device, dtype and frozen weights are kept."""
    shape = shape_of(old)
    assert shape is not None
    floats = (tensor for tensor in old.state_dict().values() if tensor.is_floating_point())
    reference = next(floats, torch.zeros(()))
    new = make_layer({**shape, **changes}).to(reference.device, reference.dtype)
    new.load_state_dict(dict(state))
    return trained_like(old, new)


def trained_like(old: nn.Module, new: nn.Module) -> nn.Module:
    """``new``, in which a tensor is trained, frozen or a buffer as in ``old`` the one of the same name is."""
    for name, parameter in list(new.named_parameters()):
        if name in old._buffers:
            new.register_parameter(name, None)
            del new._parameters[name]
            new.register_buffer(name, parameter.detach())
        elif (before := old._parameters.get(name)) is not None:
            parameter.requires_grad_(before.requires_grad)
    return new


def _only(layer: nn.Module, channels: Sequence[int]) -> dict[str, Tensor]:
    """The tensors of a layer with one value a channel, at some channels."""
    return {name: value[channels] if value.dim() else value for name, value in layer.state_dict().items()}


def _rest(size: int, gone: set[int]) -> Sequence[int]:
    return [position for position in range(size) if position not in gone]
