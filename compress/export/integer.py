"""Compute a quantized network as ONNX Runtime's x86 kernels do: in integers, with the same order of rounding.

``fake_quantized`` rounds the same values, but adds them in float: sometimes a sum falls on the other side of a
rounding boundary, and each such difference causes others in later layers. So two correct computations of a ResNet-18
differ by a few percent, which hides a real error of that size. This computation does not differ.

The sums are exact, as they are with VNNI and, by the choice of weights (``pairs``), without it. To compute the results
of a processor without VNNI for other weights, ``pair_sums="int16"`` clips each pair of products.

A tensor is held in the form in which the kernels hold it: integers with their scale (``Codes``), or a result that is
not yet rounded (``Sum``, ``Addition``). Operations that the engine runs in float run in float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from compress.engines.saturation import PairSums
from compress.frontend.ops import OPERATIONS, name_of
from compress.quantize.fakequant import FakeActivation, insert
from compress.quantize.pairs import PAIR_HIGH, pairs
from compress.quantize.quantizer import Activation, Quantizers, Weight
from compress.quantize.rounding import quantize_weight
from compress.targets import Profile


@dataclass(frozen=True)
class Codes:
    """Integers (as float64) of a quantizer: real value = scale * (integers - zero_point)."""

    integers: Tensor
    q: Activation

    @property
    def scale(self) -> Tensor:
        return torch.tensor(self.q.scale)

    def centered(self) -> Tensor:
        return self.integers - self.q.zero_point

    def real(self) -> Tensor:
        return self.centered().float() * self.scale

    def rounded(self, q: Activation) -> Codes:
        return self if _alike(self.q, q) else _quantize(self.real(), q)


@dataclass(frozen=True)
class Sum:
    """An int32 accumulator; real value = scale * total / count, float32 scale (1, C, 1, 1) or a number."""

    total: Tensor
    scale: Tensor
    count: int = 1

    def real(self) -> Tensor:
        return self.total.float() * (self.scale / self.count)

    def rounded(self, q: Activation) -> Codes:
        step = self.scale / (torch.tensor(q.scale) * self.count)
        return _clamped(self.total.float() * step, q)


@dataclass(frozen=True)
class Addition:
    """Two operands of an addition; rounded in one step."""

    left: Codes
    right: Codes

    def real(self) -> Tensor:
        return self.left.real() + self.right.real()

    def rounded(self, q: Activation) -> Codes:
        a, b = (operand.scale / torch.tensor(q.scale) for operand in (self.left, self.right))
        zeros = _multiply_add(a, self.left.q.zero_point, b * self.right.q.zero_point)
        partial = _multiply_add(b, self.right.integers, q.zero_point - zeros)
        total = _multiply_add(a, self.left.integers, partial)
        return Codes(total.double().round().clamp(q.low, q.high), q)


def _multiply_add(factor: Tensor, integers: Tensor | int, term: Tensor) -> Tensor:
    """The processor's fused multiply-add: rounded to float32 once."""
    return (factor.double() * integers + term.double()).float()


@dataclass(frozen=True)
class Rectified:
    """A ReLU that is fused into the rounding after it."""

    value: Codes | Sum | Addition

    def real(self) -> Tensor:
        return self.value.real().relu()

    def rounded(self, q: Activation) -> Codes:
        return replace(codes := self.value.rounded(q), integers=codes.integers.clamp(min=q.zero_point))


def simulates(target: Profile) -> bool:
    """Whether these kernels run a target's files."""
    return "onnxruntime" in target.engines and target.activations == "uint8" and target.add == "both"


Held = Codes | Sum | Addition | Rectified


class IntegerNetwork(fx.Interpreter):
    """A function from images (N, C, H, W) to the engine's outputs for them, in the structure that ``net`` returns.

    It runs the graph node by node on values in the form in which the kernels hold them.

    Args:
        net: BN-folded, as calibrated.
        quantizers: placed for ONNX Runtime on x86.
        pair_sums: the type in which the processor adds two products; without VNNI that is int16, which clips.

    Attributes:
        exact: whether integers followed from integers everywhere in the runs so far. A float operation between them can
            change the result of a rounding by its last bits.
    """

    def __init__(self, net: nn.Module, quantizers: Quantizers, pair_sums: PairSums = "int32") -> None:
        super().__init__(insert(net, replace(quantizers, weights=()), FakeActivation, lambda _, __: nn.Identity()))
        self.weights, self.clips = {w.layer: w for w in quantizers.weights}, pair_sums == "int16"
        self.exact = True
        self._seen: dict[str, Tensor] = {}
        self._layers = dict(self.module.named_modules())
        self._name = ""  # of the operation that is being computed

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Any:
        return pytree.tree_map(_real, self.run(images))

    def at_quantizers(self, images: Tensor) -> dict[str, Tensor]:
        """The real values of the quantized tensors, by the name of the quantizer's module in the graph."""
        self._seen = {}
        self(images)
        return self._seen

    def _is_quantizer(self, n: fx.Node) -> bool:
        return n.op == "call_module" and isinstance(self.module.get_submodule(str(n.target)), FakeActivation)

    def run_node(self, n: fx.Node) -> Any:
        self._name = name_of(n, self._layers)
        result = super().run_node(n)
        if self._is_quantizer(n):
            (source,) = n.all_input_nodes
            # The engine computes in float what another node reads too.
            float_readers = not all(self._is_quantizer(user) for user in source.users)
            from_float = source.op != "placeholder" and isinstance(self.env[source], Tensor)
            self.exact &= not (float_readers or from_float)
            self._seen[str(n.target)] = result.real()
        return result

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module, x = self.module.get_submodule(str(target)), args[0]
        if isinstance(module, FakeActivation):
            return _quantize(x, module.quantizer) if isinstance(x, Tensor) else x.rounded(module.quantizer)
        if isinstance(module, nn.Conv2d | nn.Linear) and str(target) in self.weights and isinstance(x, Codes):
            # The engine runs a product of more than two axes in float.
            self.exact &= isinstance(module, nn.Conv2d) or x.integers.dim() == 2
            return _layer(module, self.weights[str(target)], x, self.clips)
        return _apply(self._name, module, args, kwargs)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _apply(self._name, target, args, kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _apply(self._name, getattr(Tensor, str(target)), args, kwargs)


def _apply(name: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run an operation on integers if there is a kernel for it, otherwise on real values."""
    match (name, *args):
        case ("relu", Codes() | Sum() | Addition() as x, *_):
            return Rectified(x)
        case ("add" | "iadd", Codes() as left, Codes() as right):
            return Addition(left, right)
        case ("adaptiveavgpool2d", Codes() as x, *rest):
            if call(x.integers, *rest, **kwargs).shape[2:].numel() == 1:
                return Sum(x.centered().sum((2, 3), keepdim=True), x.scale, x.integers.shape[2:].numel())
        case (_, Codes() as x, *rest) if _moves(name, rest, kwargs):
            return replace(x, integers=call(x.centered(), *rest, **kwargs) + x.q.zero_point)
        case (_, Sum() as x, *rest) if _moves(name, rest, kwargs) and x.scale.numel() == 1:
            return replace(x, total=call(x.total, *rest, **kwargs))
    real_args, real_kwargs = pytree.tree_map(_real, (args, dict(kwargs)))
    return call(*real_args, **real_kwargs)


def _moves(name: str, rest: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation passes integers on unchanged; a padding with other values than 0 does not."""
    filled = name == "pad" and any((*rest[2:], kwargs.get("value")))
    return name in OPERATIONS and OPERATIONS[name].moves and not filled


def _layer(layer: nn.Conv2d | nn.Linear, w: Weight, x: Codes, clips: bool) -> Sum:
    """The int32 accumulator of a layer, held exactly in float64."""
    scale = x.scale * torch.tensor(w.scale)
    state = {"weight": quantize_weight(w, layer.weight).double()}
    if layer.bias is not None:
        state["bias"] = (layer.bias / scale).round().double()
    total = torch.func.functional_call(layer, state, (x.centered(),))
    if clips:
        total = total - _clipped_off(layer, state["weight"], x).reshape(total.shape)
    return Sum(total, scale if isinstance(layer, nn.Linear) else scale.reshape(1, -1, 1, 1))


def _clipped_off(layer: nn.Conv2d | nn.Linear, weight: Tensor, x: Codes) -> Tensor:
    """(N, C_out, positions): the difference that clipping each pair of products to int16 makes to the sums.

    The kernels multiply the integers as they are, and subtract the zero point's part from the sum afterwards.
    """
    if isinstance(layer, nn.Conv2d):
        padded = F.pad(x.integers, layer._reversed_padding_repeated_twice, value=float(x.q.zero_point))
        columns = F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
        groups = layer.groups
    else:
        columns, groups = x.integers.reshape(-1, layer.in_features, 1), 1
    missing = columns.new_zeros(len(columns), len(weight), columns.shape[2])
    if groups == len(weight) == weight.shape[1] * groups:
        return missing  # a depthwise convolution has a kernel of its own, which does not add pairs
    inputs, outputs, flat = columns.chunk(groups, 1), len(weight) // groups, weight.flatten(1)
    in_pairs = torch.from_numpy(pairs(tuple(weight.shape[1:]))[0])
    for channel in range(len(weight)):
        chosen = in_pairs[flat[channel, in_pairs].sum(1).abs() > PAIR_HIGH]
        sums = (inputs[channel // outputs][:, chosen] * flat[channel, chosen][:, :, None]).sum(2)
        missing[:, channel] = (sums - sums.clamp(-(2**15), 2**15 - 1)).sum(1)
    return missing


def _quantize(x: Tensor, q: Activation) -> Codes:
    return _clamped(x.float() / torch.tensor(q.scale), q)


def _clamped(steps: Tensor, q: Activation) -> Codes:
    return Codes((steps.round().double() + q.zero_point).clamp(q.low, q.high), q)


def _alike(a: Activation, b: Activation) -> bool:
    return (a.scale, a.zero_point, a.low) == (b.scale, b.zero_point, b.low)


def _real(value: Any) -> Any:
    return value.real() if isinstance(value, Held) else value
