"""ATen operations that own no tensors, and the functions that they become.

Each maker adds the function's call to the raised graph. What several ATen operations compute alike gets one name:
``relu_``, ``relu`` and ``nn.ReLU`` are all ``torch.relu``. Nothing works in place, and no call names the batch size.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

if TYPE_CHECKING:
    from compress.frontend.raiser import Raiser

Arguments = Mapping[str, Any]
Maker = Callable[["Raiser", fx.Node, Arguments], Any]
"""Makes the value that stands for an operation's result from the program's node and the operation's arguments: a node
of the raised graph, or a tuple of such nodes."""


def plain(value: Any) -> Any:
    """Lists as tuples."""
    return tuple(plain(v) for v in value) if isinstance(value, list | tuple) else value


def new_full(like: Tensor, shape: Sequence[int], value: float) -> Tensor:
    """A constant (N, *shape) on the device and in the type of ``like`` (N, ...).

    >>> new_full(torch.zeros(2, 3), (1, 2), 5.0).shape
    torch.Size([2, 1, 2])
    """
    return like.new_full((like.shape[0], *shape), value)


def _call(function: Callable[..., Any], *names: str) -> Maker:
    """The function with some of the operation's arguments, in this order."""
    return lambda r, node, a: r.call(node, function, tuple(plain(a[name]) for name in names))


def _with_alpha(function: Callable[..., Any], scaled: Callable[..., Any]) -> Maker:
    def make(r: Raiser, node: fx.Node, a: Arguments) -> Any:
        if a.get("alpha", 1) == 1:
            return r.call(node, function, (a["self"], a["other"]))
        return r.call(node, scaled, (a["self"], a["other"]), {"alpha": a["alpha"]})

    return make


def _hardtanh(r: Raiser, node: fx.Node, a: Arguments) -> Any:
    if (a["min_val"], a["max_val"]) == (0, 6):
        return r.call(node, F.relu6, (a["self"],))
    return r.call(node, torch.clamp, (a["self"], a["min_val"], a["max_val"]))


def _gelu(r: Raiser, node: fx.Node, a: Arguments) -> Any:
    return r.call(node, F.gelu, (a["self"],), {"approximate": a["approximate"]})


def _interpolate(mode: str) -> Maker:
    def make(r: Raiser, node: fx.Node, a: Arguments) -> Any:
        size = plain(a["output_size"])
        kwargs = {"scale_factor": plain(a["scale_factors"])} if size is None else {"size": size}
        if mode != "nearest":
            kwargs["align_corners"] = a["align_corners"]
        return r.call(node, F.interpolate, (a["input"],), {**kwargs, "mode": mode})

    return make


def _avg_pool(r: Raiser, node: fx.Node, a: Arguments) -> Any:
    size = plain(a["kernel_size"])
    rest = (plain(a["padding"]), a["ceil_mode"], a["count_include_pad"], a["divisor_override"])
    return r.call(node, F.avg_pool2d, (a["self"], size, plain(a["stride"]) or size, *rest))


def _max_pool(r: Raiser, node: fx.Node, a: Arguments) -> Any:
    size = plain(a["kernel_size"])
    rest = (plain(a["padding"]), plain(a["dilation"]), a["ceil_mode"])
    return r.call(node, F.max_pool2d, (a["self"], size, plain(a["stride"]) or size, *rest))


def _with_indices(function: Callable[..., Any], *names: str) -> Maker:
    """An operation that also returns indices, which nothing here can use."""
    return lambda r, node, a: (r.call(node, function, tuple(plain(a[name]) for name in names)), None)


def _max(r: Raiser, node: fx.Node, a: Arguments) -> Any:
    return r.call(node, torch.amax, (a["self"], (a["dim"],), a["keepdim"])), None


def _slice(r: Raiser, node: fx.Node, a: Arguments) -> Any:
    source = r.shape_of(node.args[0])
    dim, start, end, step = a["dim"] % len(source), a["start"] or 0, a["end"], a["step"]
    size = source[dim]
    if not isinstance(size, int):
        if start or step != 1 or (isinstance(end, int) and end < 2**62):
            raise r.refusal(node, "it takes a part of the batch")
        return a["self"]
    end = None if end is None or end >= size else end
    if not start and end is None and step == 1:
        return a["self"]
    return r.index(node, a["self"], dim, slice(start or None, end, None if step == 1 else step))


def _select(r: Raiser, node: fx.Node, a: Arguments) -> Any:
    source = r.shape_of(node.args[0])
    dim = a["dim"] % len(source)
    if not isinstance(source[dim], int):
        raise r.refusal(node, "it takes one image of the batch")
    return r.reshape(node, a["self"]) if source[dim] == 1 and dim else r.index(node, a["self"], dim, a["index"])


def _pieces(r: Raiser, node: fx.Node, a: Arguments) -> Any:
    """``chunk`` and ``split`` as slices."""
    dim, start, parts = a["dim"] % len(r.shape_of(node.args[0])), 0, []
    for value in node.meta["val"]:
        parts.append(r.index(node, a["self"], dim, slice(start or None, start + value.shape[dim])))
        start += value.shape[dim]
    return tuple(parts)


def _reshape(r: Raiser, node: fx.Node, a: Arguments) -> Any:
    return r.reshape(node, a["self"])


def _same(r: Raiser, node: fx.Node, a: Arguments) -> Any:
    """Nothing, now that no operation works in place."""
    return a["self"] if "self" in a else next(iter(a.values()))


def _to(r: Raiser, node: fx.Node, a: Arguments) -> Any:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    wanted = node.meta["val"].dtype
    return a["self"] if source.meta["val"].dtype == wanted else r.method(node, "to", (a["self"], wanted))


def _expand(r: Raiser, node: fx.Node, a: Arguments) -> Any:
    """Nothing where only arithmetic with a tensor of the whole size reads the result, because that broadcasts."""
    before, after = r.shape_of(node.args[0]), r.shape_of(node)

    def broadcasts(user: fx.Node) -> bool:
        if not str(user.target).startswith(("aten.mul", "aten.add", "aten.sub", "aten.div")):
            return False
        others = [n for n in user.all_input_nodes if n is not node]
        return any(_same_sizes(r.shape_of(other), after) for other in others)

    if all(broadcasts(user) for user in node.users):
        return a["self"]
    before = (1,) * (len(after) - len(before)) + before
    sizes = tuple(-1 if not isinstance(n, int) or n == m else n for n, m in zip(after, before, strict=True))
    return r.method(node, "expand", (a["self"], sizes))


def _cat(r: Raiser, node: fx.Node, a: Arguments) -> Any:
    """Zeros before or behind the channels of a map are padding."""
    parts, sizes = list(a["tensors"]), r.shape_of(node)
    dim = a["dim"] % len(sizes)
    zero = [isinstance(p, fx.Node) and p.target is new_full and p.args[2] == 0 for p in parts]
    if dim == 1 and zero.count(False) == 1 and len(sizes) == 4:
        at = zero.index(False)
        assert isinstance(node.args[0], list | tuple)
        channels = [int(r.shape_of(n)[1]) for n in node.args[0]]
        return r.call(node, F.pad, (parts[at], (0, 0, 0, 0, sum(channels[:at]), sum(channels[at + 1 :]))))
    return r.call(node, torch.cat, (tuple(parts), dim))


def _pad(r: Raiser, node: fx.Node, a: Arguments) -> Any:
    return r.call(node, F.pad, (a["self"], plain(a["pad"])), {"mode": a["mode"], "value": a["value"]})


def _full(value: float | None) -> Maker:
    def make(r: Raiser, node: fx.Node, a: Arguments) -> Any:
        fill, (batch, *rest) = a.get("fill_value", value), r.shape_of(node)
        kind = node.meta["val"].dtype
        if isinstance(batch, int) or not kind.is_floating_point:
            return r.constant(node, torch.full((batch, *rest), fill, dtype=kind))
        return r.call(node, new_full, (r.images, tuple(rest), fill))

    return make


def _same_sizes(left: Sequence[Any], right: Sequence[Any]) -> bool:
    return list(map(str, left)) == list(map(str, right))  # as text: comparing symbolic sizes would fix them


def reshape(r: Raiser, node: fx.Node, source: fx.Node) -> fx.Node:
    """A change of shape, without the batch size, and without the number of channels wherever that can be."""
    before, after = list(r.shape_of(node.args[0])), list(r.shape_of(node))
    if _same_sizes(before, after):
        return source
    symbolic = [not isinstance(n, int) for n in after]
    if not any(symbolic):  # of parameters alone: as it was written
        sizes = node.args[1] if len(node.args) > 1 and isinstance(node.args[1], list | tuple) else after
        return r.call(node, torch.reshape, (source, tuple(sizes)))
    if symbolic.count(True) > 1:
        raise r.refusal(node, f"its result {tuple(after)} has several sizes that depend on the batch")
    if not symbolic[0] or str(before[0]) != str(after[0]):
        sizes = tuple(-1 if s else n for n, s in zip(after, symbolic, strict=True))
        return r.call(node, torch.reshape, (source, sizes))
    for start in range(1, len(before)):
        for end in range(start + 1, len(before)):
            if after[1:] == [*before[1:start], math.prod(before[start : end + 1]), *before[end + 1 :]]:
                last = () if end == len(before) - 1 else (end,)
                return r.call(node, torch.flatten, (source, start, *last))
    if after[1 : len(before)] == before[1:] and set(after[len(before) :]) == {1}:
        return r.call(node, torch.unflatten, (source, len(before) - 1, (-1, *after[len(before) :])))
    return r.call(node, torch.reshape, (source, (-1, *after[1:])))


_UNARY = (torch.relu, torch.sigmoid, torch.tanh, torch.abs, torch.neg, torch.sqrt, torch.rsqrt, torch.exp, torch.log)
_UNARY_TOO = (torch.square, torch.reciprocal, F.silu, F.hardswish, F.hardsigmoid, F.mish, F.selu, F.relu6)
_SHAPES = ("view", "reshape", "flatten.using_ints", "unflatten.int", "view_as", "reshape_as", "unsqueeze")
_SQUEEZES = ("squeeze", "squeeze.dim", "squeeze.dims")
_COPIES = ("contiguous", "clone", "detach", "detach_", "alias", "lift_fresh_copy")
_CASTS = ("to.dtype", "to.device", "to.dtype_layout", "to.other", "_to_copy", "type_as")

FUNCTIONS: dict[str, Maker] = {
    # activations
    **{f"aten.{function.__name__}": _call(function, "self") for function in (*_UNARY, *_UNARY_TOO)},
    "aten.log_sigmoid": _call(F.logsigmoid, "self"),
    "aten.leaky_relu": _call(F.leaky_relu, "self", "negative_slope"),
    "aten.elu": _call(F.elu, "self", "alpha"),
    "aten.celu": _call(F.celu, "self", "alpha"),
    "aten.softplus": _call(F.softplus, "self", "beta", "threshold"),
    "aten.gelu": _gelu,
    "aten.hardtanh": _hardtanh,
    "aten.clamp": _call(torch.clamp, "self", "min", "max"),
    "aten.clamp_min": lambda r, node, a: r.call(node, torch.clamp, (a["self"], a["min"], None)),
    "aten.clamp_max": lambda r, node, a: r.call(node, torch.clamp, (a["self"], None, a["max"])),
    "aten.softmax.int": _call(torch.softmax, "self", "dim"),
    "aten.log_softmax.int": _call(torch.log_softmax, "self", "dim"),
    # arithmetic
    "aten.add.Tensor": _with_alpha(operator.add, torch.add),
    "aten.sub.Tensor": _with_alpha(operator.sub, torch.sub),
    "aten.mul.Tensor": _call(operator.mul, "self", "other"),
    "aten.div.Tensor": _call(operator.truediv, "self", "other"),
    "aten.pow.Tensor_Scalar": _call(torch.pow, "self", "exponent"),
    "aten.maximum": _call(torch.maximum, "self", "other"),
    "aten.minimum": _call(torch.minimum, "self", "other"),
    # pooling and reductions
    "aten.max_pool2d": _max_pool,
    "aten.avg_pool2d": _avg_pool,
    "aten.adaptive_avg_pool2d": _call(F.adaptive_avg_pool2d, "self", "output_size"),
    "aten.adaptive_max_pool2d": _with_indices(F.adaptive_max_pool2d, "self", "output_size"),
    "aten.mean.dim": _call(torch.mean, "self", "dim", "keepdim"),
    "aten.sum.dim_IntList": _call(torch.sum, "self", "dim", "keepdim"),
    "aten.amax": _call(torch.amax, "self", "dim", "keepdim"),
    "aten.amin": _call(torch.amin, "self", "dim", "keepdim"),
    "aten.max.dim": _max,
    "aten.linalg_vector_norm": _call(torch.linalg.vector_norm, "self", "ord", "dim", "keepdim"),
    # shapes
    **{f"aten.{name}": _reshape for name in (*_SHAPES, *_SQUEEZES)},
    "aten.permute": _call(torch.permute, "self", "dims"),
    "aten.transpose.int": _call(torch.transpose, "self", "dim0", "dim1"),
    "aten.slice.Tensor": _slice,
    "aten.select.int": _select,
    **{f"aten.{name}": _pieces for name in ("chunk", "split.Tensor", "split_with_sizes")},
    "aten.cat": _cat,
    "aten.pad": _pad,
    **{f"aten.{name}": _expand for name in ("expand", "expand_as")},
    **{f"aten.upsample_{mode}2d.vec": _interpolate(mode) for mode in ("nearest", "bilinear", "bicubic")},
    # constants
    "aten.zeros": _full(0.0),
    "aten.ones": _full(1.0),
    "aten.full": _full(None),
    "aten.new_zeros": _full(0.0),
    "aten.new_ones": _full(1.0),
    "aten.new_full": _full(None),
    "aten.zeros_like": _call(torch.zeros_like, "self"),
    "aten.ones_like": _call(torch.ones_like, "self"),
    # nothing
    **{f"aten.{name}": _same for name in _COPIES},
    **{f"aten.{name}": _to for name in _CASTS},
}
"""By the name of the ATen operation; without its overload where that is ``default``."""
