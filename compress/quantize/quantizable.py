"""Which layers of a network stay in float, and why: known from the structure alone, before anything is trained."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from compress.frontend.raising import raised
from compress.models.cost import count, layer_macs
from compress.quantize.graph import layer_of, trace
from compress.quantize.quantizer import Quantizers
from compress.targets import Profile, profile

QUANTIZED = nn.Conv2d | nn.Linear
"""The layers that can have INT8 weights."""

WEIGHTED = _ConvNd | nn.Linear
"""The layers that multiply by weights."""


@dataclass(frozen=True)
class FloatLayer:
    """A layer that stays in float on purpose.

    Attributes:
        layer: its name.
        reason: why, as the end of a sentence.
        share: its part of the network's multiply-accumulates: what it costs in float, roughly.
    """

    layer: str
    reason: str
    share: float

    def __str__(self) -> str:
        return f"'{self.layer}' stays in float ({self.share:.1%} of the multiply-accumulates): {self.reason}"


def check_quantizable(net: nn.Module, target: str, shape: Sequence[int]) -> tuple[FloatLayer, ...]:
    """The layers that stay in float, in the order of execution; empty where the whole network runs in INT8.

    Args:
        net: trained or not.
        target: a name in ``targets.names()``.
        shape: of an image (C, H, W).

    Raises:
        ModelError: the network cannot be followed; see ``raised``.
        ConfigError: an unknown target.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2))
    >>> print(*check_quantizable(net, "ort-x86", (3, 8, 8)))
    '2' stays in float (72.7% of the multiply-accumulates): layers of type ConvTranspose2d are not quantized
    """
    network, rule = raised(net, shape), profile(target)
    reasons = {name: reason for name, layer in _layers(trace(network)) if (reason := _reason(layer, rule))}
    if not reasons:
        return ()
    macs, total = layer_macs(network, shape), max(count(network, shape).macs, 1)
    return tuple(FloatLayer(name, reason, macs.get(name, 0) / total) for name, reason in reasons.items())


def in_float(net: nn.Module, quantizers: Quantizers) -> tuple[str, ...]:
    """The layers whose weights the quantizers leave in float, in the order of execution.

    Args:
        net: BN-folded, that the quantizers were made for.
    """
    quantized: Collection[str] = {w.layer for w in quantizers.weights}
    return tuple(name for name, _ in _layers(trace(net)) if name not in quantized)


def _layers(graph: fx.GraphModule) -> Iterator[tuple[str, nn.Module]]:
    """The layers that multiply by weights, each once."""
    found = {str(node.target): layer_of(graph, node) for node in graph.graph.nodes if node.op == "call_module"}
    return ((name, layer) for name, layer in found.items() if isinstance(layer, WEIGHTED))


def _reason(layer: nn.Module, rule: Profile) -> str:
    kind = type(layer).__name__
    if not isinstance(layer, QUANTIZED):
        return f"layers of type {kind} are not quantized"
    return f"the target {rule.name} keeps layers of type {kind} in float" if kind in rule.keep_float else ""
