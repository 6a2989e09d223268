"""Propagate channels through operations: one rule for each word in ``ops.Channels``.

A rule reads an ``Op``, records in the ``ChannelMap`` which channels go together or must stay, and returns the channels
of the result. It raises ModelError, before it records anything, where it cannot follow the operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from torch import nn

from compress.errors import ModelError
from compress.frontend.ops import Channels, operation_of
from compress.graph.channels import ChannelMap, Ids, Op
from compress.graph.tracing import where
from compress.models.cifar import SelectPad

Rule = Callable[[ChannelMap, Op], Ids]
Layer = TypeVar("Layer", bound=nn.Module)


def channels_after(op: Op, channels: ChannelMap) -> Ids:
    """Propagate the channels through one operation; where that is not possible, all of its channels stay."""
    modules = {} if op.module is None else {str(op.node.target): op.module}
    row = operation_of(op.node, modules)
    try:
        return _unknown(channels, op) if row is None else _RULES[row.channels](channels, op)
    except ModelError as error:
        return _kept(channels, op, error.message)


def _layer(op: Op, kind: type[Layer]) -> tuple[Layer, str]:
    """The layer that an operation calls, and its name."""
    if not isinstance(op.module, kind):
        raise op.error("its weight belongs to no layer")
    return op.module, str(op.node.target)


def _conv(channels: ChannelMap, op: Op) -> Ids:
    """Output channels are new; in a grouped (or depthwise) convolution a group's inputs and outputs go together."""
    conv, layer = _layer(op, nn.Conv2d)
    read, _ = op.source
    channels.place(layer, "in", read)
    written = channels.written(layer, conv.out_channels)
    if conv.groups > 1:
        inputs, outputs = read.reshape(conv.groups, -1), written.reshape(conv.groups, -1)
        for members in (inputs, outputs):
            channels.tie(np.broadcast_to(inputs[:, :1], members.shape).ravel(), members.ravel())
    return written


def _linear(channels: ChannelMap, op: Op) -> Ids:
    linear, layer = _layer(op, nn.Linear)
    read, shape = op.source
    if len(shape) != 2:
        raise op.error(f"its input has shape {shape}, not (batch, features)")
    channels.place(layer, "in", read)
    return channels.written(layer, linear.out_features)


def _select_pad(channels: ChannelMap, op: Op) -> Ids:
    """The table of sources says which input feeds which output, so either side can lose channels without the other."""
    pad, layer = _layer(op, SelectPad)
    channels.place(layer, "in", op.source[0])
    return channels.written(layer, len(pad.source))


def _norm(channels: ChannelMap, op: Op) -> Ids:
    """A layer with values for each channel."""
    channels.place(str(op.node.target), "norm", op.source[0])
    return op.source[0]


def _group_norm(channels: ChannelMap, op: Op) -> Ids:
    """The channels of a group share their statistics, so they go together."""
    norm, _ = _layer(op, nn.GroupNorm)
    groups = op.source[0].reshape(norm.num_groups, -1)
    channels.tie(np.broadcast_to(groups[:, :1], groups.shape).ravel(), groups.ravel())
    return _norm(channels, op)


def _prelu(channels: ChannelMap, op: Op) -> Ids:
    prelu, _ = _layer(op, nn.PReLU)
    return _channelwise(channels, op) if prelu.num_parameters == 1 else _norm(channels, op)


def _channelwise(channels: ChannelMap, op: Op) -> Ids:
    """Output channel c depends on input channel c alone."""
    ids, _ = op.source
    if len(op.shape) < 2 or op.shape[1] != len(ids):
        raise op.error("it changes the number of channels")
    if any(value.ids is None and math.prod(value.shape) > 1 for value in op.operands):
        raise op.error("it reads a constant that may have one value a channel")
    return ids


def _whole(channels: ChannelMap, op: Op) -> Ids:
    """The operation needs all of its input channels; all must stay."""
    return _kept(channels, op, f"{where(op.node)} works on all of them at once, or has a fixed number")


def _unknown(channels: ChannelMap, op: Op) -> Ids:
    return _kept(channels, op, f"{where(op.node)} is not known: `compress.frontend.ops.OPERATIONS` has no row for it")


def _kept(channels: ChannelMap, op: Op, reason: str) -> Ids:
    for value in op.operands:
        if value.ids is not None:
            channels.freeze(value.ids, reason)
    return channels.fixed(op.shape[1] if len(op.shape) > 1 else 0, reason)


def _join(channels: ChannelMap, op: Op) -> Ids:
    """Element-wise on several tensors, with broadcasting: channels at the same position go together."""
    joined: list[Ids] = []
    constant = False
    rank = len(op.shape)
    for ids, shape in op.operands:
        if ids is not None and len(shape) != rank:
            raise op.error(f"it combines tensors of shapes {[v.shape for v in op.operands]}")
        size = shape[1 - rank] if len(shape) >= rank - 1 else 1
        if size == 1 and op.shape[1] > 1:  # one value for all channels
            if ids is not None:
                channels.freeze(ids, f"{where(op.node)} spreads it over all channels")
        elif ids is None:
            constant = True
        else:
            joined.append(ids)
    if not joined:
        return channels.fixed(op.shape[1], f"made by {where(op.node)}")
    for other in joined[1:]:
        channels.tie(joined[0], other)
    if constant:
        channels.freeze(joined[0], f"{where(op.node)} combines them with a constant that has one value a channel")
    return joined[0]


def _add(channels: ChannelMap, op: Op) -> Ids:
    ids = _join(channels, op)
    if sum(value.ids is not None for value in op.operands) > 1:
        channels.sums.append(ids)
    return ids


def _cat(channels: ChannelMap, op: Op) -> Ids:
    tensors, axis = op.argument(0, "tensors"), op.argument(1, "dim", 0)
    if not isinstance(tensors, list | tuple) or not isinstance(axis, int):
        raise op.error("it does not list its tensors and its axis")
    parts = [op.values[node] for node in tensors]
    if axis % len(op.shape) != 1:
        return _join(channels, op)
    made = f"a constant that {where(op.node)} appends"
    return np.concatenate([channels.fixed(p.shape[1], made) if p.ids is None else p.ids for p in parts])


def _pad(channels: ChannelMap, op: Op) -> Ids:
    """Padded channels (option A shortcuts written with F.pad) stay; the channels between them pass through."""
    ids, shape = op.source
    pad = op.argument(1, "pad", ())
    start = 2 * (len(shape) - 2)  # pairs are listed from the last axis backwards
    if isinstance(pad, list | tuple) and len(pad) <= start:
        return ids
    if not isinstance(pad, list | tuple) or not all(isinstance(p, int) and p >= 0 for p in pad[start:]):
        return _whole(channels, op)
    if any(pad[start + 2 :]) or op.argument(2, "mode", "constant") != "constant":
        return _whole(channels, op)
    made = f"padded by {where(op.node)}"
    before, after = (channels.fixed(count, made) for count in pad[start : start + 2])
    return np.concatenate([before, ids, after])


def _slice(channels: ChannelMap, op: Op) -> Ids:
    """Slices such as ``x[:, :, ::2, ::2]``."""
    ids, _ = op.source
    index = op.node.args[1]
    index = index if isinstance(index, tuple) else (index,)
    if index[0] != slice(None) or any(part is None or part is ... for part in index):
        raise op.error("it slices the batch axis, which must stay whole")
    return ids if len(index) == 1 or index[1] == slice(None) else _whole(channels, op)


def _refold(ids: Ids, before: Sequence[int], after: Sequence[int]) -> Ids | None:
    """Channels after a row-major change of shape: the same ones, or each repeated H*W times if a map was flattened."""
    if len(after) < 2 or len(before) < 2 or after[0] != before[0]:
        return None
    if after[1] == before[1]:
        return ids
    return np.repeat(ids, math.prod(before[2:])) if len(after) == 2 else None


def _flatten(channels: ChannelMap, op: Op) -> Ids:
    ids, shape = op.source
    refolded = _refold(ids, shape, op.shape)
    return _whole(channels, op) if refolded is None else refolded


def _reshape(channels: ChannelMap, op: Op) -> Ids:
    ids, shape = op.source
    sizes = op.argument(1, "shape")
    refolded = _refold(ids, shape, op.shape)
    if refolded is None or not isinstance(sizes, list | tuple) or len(sizes) != len(op.shape):
        return _whole(channels, op)
    if sizes[1] != -1:
        channels.freeze(ids, f"{where(op.node)} fixes their number; write x.flatten(1)")
    return refolded


def _reduce(channels: ChannelMap, op: Op) -> Ids:
    """Mean, sum or maximum over pixels keeps channels; over channels it needs all of them."""
    ids, shape = op.source
    axes = op.argument(1, "dim")
    axes = (axes,) if isinstance(axes, int) else axes
    if not isinstance(axes, list | tuple) or any(not isinstance(a, int) or a % len(shape) < 2 for a in axes):
        return _whole(channels, op)
    return ids


def _permute(channels: ChannelMap, op: Op) -> Ids:
    axes = op.argument(1, "dims")
    return op.source[0] if axes[:2] == (0, 1) else _whole(channels, op)


_RULES: dict[Channels, Rule] = {
    "conv": _conv,
    "linear": _linear,
    "select_pad": _select_pad,
    "norm": _norm,
    "group_norm": _group_norm,
    "channelwise": _channelwise,
    "add": _add,
    "join": _join,
    "cat": _cat,
    "pad": _pad,
    "slice": _slice,
    "permute": _permute,
    "reshape": _reshape,
    "flatten": _flatten,
    "reduce": _reduce,
    "prelu": _prelu,
    "whole": _whole,
}
