"""Every operation that the pipeline understands, in one table.

An operation has one name, however a network writes it: ``leakyrelu`` stands for nn.LeakyReLU, F.leaky_relu and
x.leaky_relu_(). Pruning reads from the table how channels pass through an operation and which blocks can be removed;
quantization and export read which operations pass integers on. Around an operation that is not in the table all
channels stay.

To add an operation of your own, add a row in the module that defines your network:

>>> OPERATIONS["triplerelu"] = Operation("channelwise", keeps_zero=True)  # f(0) = 0, each channel by itself
>>> del OPERATIONS["triplerelu"]
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import fx, nn

Channels = Literal[
    "conv",  # a layer with weights, or a shortcut: its output channels are new ones
    "linear",
    "select_pad",
    "norm",  # a layer with values for each channel
    "group_norm",
    "channelwise",  # output channel c depends on input channel c alone
    "add",  # element-wise on several tensors: channels at the same position go together
    "join",
    "cat",
    "pad",
    "slice",
    "permute",
    "reshape",
    "flatten",
    "reduce",
    "prelu",
    "whole",  # works on all channels at once: all stay
]
"""How channels pass from an operation's inputs to its result; ``propagation`` has one rule for each word."""


@dataclass(frozen=True)
class Operation:
    """A row of the table: how the pipeline treats an operation.

    Attributes:
        channels: how channels pass through it; see ``Channels``.
        adds: it adds two tensors, as at the end of a residual block.
        multiplies: its result is zero wherever one of its operands is zero.
        keeps_zero: element-wise on one tensor, with f(0) = 0.
        keeps_sign: for inputs that are not negative, its result is not negative either.
        moves: it only copies or selects values, so that integers stay integers.
        onnx: the ONNX operators that it is exported to; given only for operations that move values.
    """

    channels: Channels
    adds: bool = False
    multiplies: bool = False
    keeps_zero: bool = False
    keeps_sign: bool = False
    moves: bool = False
    onnx: tuple[str, ...] = ()


def _rows(names: str, operation: Operation) -> dict[str, Operation]:
    return dict.fromkeys(names.split(), operation)


OPERATIONS: dict[str, Operation] = {
    "conv2d": Operation("conv"),
    "linear": Operation("linear"),
    "selectpad": Operation("select_pad", moves=True, onnx=("Gather",)),
    **_rows("batchnorm2d frozenbatchnorm batchnorm1d instancenorm2d", Operation("norm")),
    "groupnorm": Operation("group_norm"),
    "prelu": Operation("prelu", keeps_zero=True),
    "add": Operation("add", adds=True),
    "sub": Operation("add"),
    "mul": Operation("join", multiplies=True),
    **_rows("truediv maximum minimum expand", Operation("join")),
    "cat": Operation("cat"),
    "pad": Operation("pad", keeps_zero=True, moves=True, onnx=("Pad",)),
    "getitem": Operation("slice", moves=True, onnx=("Slice",)),
    "permute": Operation("permute", moves=True, onnx=("Transpose",)),
    "transpose": Operation("whole", moves=True, onnx=("Transpose",)),
    "reshape": Operation("reshape", moves=True, onnx=("Reshape",)),
    **_rows("flatten unflatten", Operation("flatten", moves=True, onnx=("Flatten", "Reshape", "Squeeze", "Unsqueeze"))),
    **_rows("mean sum amax amin", Operation("reduce")),
    "maxpool2d": Operation("channelwise", keeps_sign=True, moves=True, onnx=("MaxPool",)),
    "avgpool2d": Operation("channelwise", keeps_sign=True),
    "identity": Operation("channelwise", keeps_zero=True, keeps_sign=True, moves=True, onnx=("Identity",)),
    **_rows(
        "dropout dropout2d stochasticdepth droppath",
        Operation("channelwise", keeps_zero=True, keeps_sign=True, moves=True),
    ),
    **_rows(
        "relu relu6 leakyrelu elu celu selu gelu silu mish tanh hardswish",
        Operation("channelwise", keeps_zero=True),
    ),
    **_rows(
        "sigmoid softplus hardsigmoid logsigmoid adaptiveavgpool2d adaptivemaxpool2d alphadropout featurealphadropout "
        "interpolate clamp neg abs sqrt rsqrt exp log reciprocal pow square to zeroslike oneslike",
        Operation("channelwise"),
    ),
    **_rows("layernorm convtranspose2d softmax logsoftmax linalgvectornorm newfull full", Operation("whole")),
}
"""The rows by name, as ``name_of`` gives it. You may add rows: see the module's docstring."""

MOVES_IN_ONNX = tuple(dict.fromkeys(kind for row in OPERATIONS.values() if row.moves for kind in row.onnx))
"""ONNX operators that copy or select values: Q/DQ commute with them, and engines move Q/DQ across."""

_HOMES = ("torch", "compress.models", "compress.frontend")


def name_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """The name of a node's operation, as the table spells it: lower case, without underscores.

    Args:
        modules: the network's layers, by the names that ``call_module`` nodes use.
    """
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__.lower()
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    name = name.partition(".")[0]  # of an ATen operation, without its overload
    return name if name.startswith("_") else name.replace("_", "")


def operation_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> Operation | None:
    """A node's row of the table; None if it has none.

    A layer or function that is not PyTorch's but has the name of a PyTorch one gets None too, because it may compute
    something else. Its own row in the table, under its own name, does count.
    """
    name = name_of(node, modules)
    row = OPERATIONS.get(name)
    if row is None or name not in _BUILT_IN:
        return row
    known = modules[str(node.target)].__class__ if node.op == "call_module" else node.target
    foreign = inspect.isclass(known) or inspect.isfunction(known)
    return None if foreign and not known.__module__.startswith(_HOMES) else row


def keeps_zero(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node's result is zero where its one operand is zero."""
    row = operation_of(node, modules)
    return row is not None and row.keeps_zero and not node.kwargs.get("value")  # of F.pad


def stays_whole(kind: type[nn.Module]) -> bool:
    """Whether a module of this class is one operation, whatever it does inside: the table has a row with its name.

    PyTorch's own layers are not: what they do inside is what the rows are about.

    >>> stays_whole(nn.ReLU), stays_whole(type("TripleReLU", (nn.Module,), {}))
    (False, False)
    """
    name, home = kind.__name__.lower(), kind.__module__
    if home.startswith("torch.nn") or name not in OPERATIONS:
        return False
    return name not in _BUILT_IN or home.startswith(_HOMES)


_BUILT_IN = frozenset(OPERATIONS)
