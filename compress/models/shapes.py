"""The shape of each layer, as plain JSON: what makes a pruned or BN-folded network loadable without its class pickled.

``describe`` reads the layers whose shape surgery may change; ``reshape`` rebuilds them in a freshly constructed
network, so that a state_dict of the changed shapes loads strictly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from compress.errors import CheckpointError
from compress.models.cifar import SelectPad
from compress.models.removed import Removed
from compress.parse import Finite, Size, brief

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
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"]
    bias: bool


class BatchNormShape(TypedDict):
    type: Literal["BatchNorm2d"]
    num_features: Size
    eps: Finite
    momentum: Finite | None
    affine: bool
    track_running_stats: bool


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


AnyShape = Annotated[ConvShape | BatchNormShape | LinearShape | SelectPadShape | Unshaped, Field(discriminator="type")]
"""What ``model.json`` may say of a layer."""


def _conv(m: nn.Module) -> Shape:
    assert isinstance(m, nn.Conv2d)
    keys = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {**{key: getattr(m, key) for key in keys}, "bias": m.bias is not None}


def _bn(m: nn.Module) -> Shape:
    assert isinstance(m, nn.BatchNorm2d)
    keys = ("num_features", "eps", "momentum", "affine", "track_running_stats")
    return {key: getattr(m, key) for key in keys}


def _linear(m: nn.Module) -> Shape:
    assert isinstance(m, nn.Linear)
    return {"in_features": m.in_features, "out_features": m.out_features, "bias": m.bias is not None}


def _select_pad(m: nn.Module) -> Shape:
    assert isinstance(m, SelectPad)
    return {"source": m.source, "stride": m.stride}


_READERS: dict[type[nn.Module], Callable[[nn.Module], Shape]] = {
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _bn,
    nn.Linear: _linear,
    SelectPad: _select_pad,
    nn.Identity: lambda _: {},
    Removed: lambda _: {},
}
_TYPES: dict[str, Callable[..., nn.Module]] = {cls.__name__: cls for cls in _READERS}


def shape_of(module: nn.Module) -> Shape | None:
    """``{"type": ..., <constructor arguments>}`` of one layer; None for a layer that surgery leaves alone.

    >>> shape_of(nn.Linear(4, 2))
    {'type': 'Linear', 'in_features': 4, 'out_features': 2, 'bias': True}
    """
    reader = _READERS.get(type(module))
    return None if reader is None else {"type": type(module).__name__, **_plain(reader(module))}


def describe(net: nn.Module) -> dict[str, Shape]:
    """The shape of every layer by its dotted name, the first one of a layer that has several."""
    shapes = ((name, shape_of(module)) for name, module in net.named_modules())
    return {name: shape for name, shape in shapes if shape is not None}


def make_layer(shape: Mapping[str, Any]) -> nn.Module:
    """A fresh layer of the given shape."""
    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in shape.items() if key != "type"}
    return _TYPES[shape["type"]](**arguments)


def replace_module(net: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of the submodule called ``name``, under every name that it has in ``net``."""
    old = net.get_submodule(name)
    for alias in [alias for alias, found in net.named_modules(remove_duplicate=False) if found is old]:
        parent, _, child = alias.rpartition(".")
        setattr(net.get_submodule(parent), child, module)


def reshape(net: nn.Module, shapes: Mapping[str, Mapping[str, Any]]) -> None:
    """Rebuild, in place, the layers of ``net`` whose shape differs from ``shapes``; their weights are fresh.

    Raises:
        CheckpointError: ``shapes`` names a layer that the network does not have, or a layer type that is unknown.
    """
    for name, shape in shapes.items():
        try:
            current = shape_of(net.get_submodule(name))
            if current != _plain(shape):
                if not name:
                    raise ValueError("no name: that is the network itself")
                replace_module(net, name, make_layer(shape))
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"layer '{brief(name, 100)}' is said to be {brief(dict(shape))}, which the architecture lacks "
                f"({brief(error)})",
                remedy="the architecture's code has changed since the model was saved; use the version that saved it",
            ) from None


def _plain(shape: Mapping[str, Any]) -> Shape:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in shape.items()}
