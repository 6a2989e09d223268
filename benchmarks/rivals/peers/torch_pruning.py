"""Torch-Pruning: channels pruned by a ratio, one of the criteria that its authors describe, BN measured anew.

It is used as its authors do in their benchmarks: the classifier is ignored, ``isomorphic`` goes with global pruning
(alone it applies the indices of one layer to others), and the gradients of many images are gathered before one step.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.errors import BackendAbsent, ConfigError, ModelError
from compress.graph.groups import couple
from compress.graph.head import head_of
from compress.models.cifar import SelectPad

Scope = Literal["local", "global", "isomorphic"]
Criterion = Literal["l2", "taylor", "obd"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

Labelled = Iterable[tuple[Tensor, Tensor]]
Evidence = Mapping[str, Tensor]
"""By parameter name, what the criterion weighs the weights with; empty for the norm."""


@dataclass(frozen=True, order=True)
class Setting:
    """How Torch-Pruning is called, but for the ratio.

    Attributes:
        scope: channels are ranked within each layer, over all of them, or over layers of like surroundings.
        criterion: ``GroupMagnitudeImportance(p=2)``, ``GroupTaylorImportance``, or ``GroupHessianImportance`` (Optimal
            Brain Damage).
        round_to: kept widths are multiples of this.
    """

    scope: Scope
    criterion: Criterion
    round_to: int

    def __str__(self) -> str:
        return f"{self.scope}-{self.criterion}-{self.round_to}"

    @classmethod
    def parse(cls, text: str) -> Setting:
        """The inverse of ``str``.

        Raises:
            ConfigError: it is none.

        >>> Setting.parse("global-taylor-16")
        Setting(scope='global', criterion='taylor', round_to=16)
        """
        scope, _, rest = text.partition("-")
        criterion, _, multiple = rest.partition("-")
        if scope not in SCOPES or criterion not in CRITERIA or not multiple.isdecimal() or int(multiple) < 1:
            raise ConfigError(
                f"'{text}' is not a way to prune",
                remedy=f"SCOPE-CRITERION-MULTIPLE of {'/'.join(SCOPES)}, {'/'.join(CRITERIA)}, as in {SETTINGS[0]}",
            )
        return cls(scope, criterion, int(multiple))


SETTINGS: tuple[Setting, ...] = tuple(Setting(s, c, r) for s in SCOPES for c in CRITERIA for r in (8, 16))


def evidence(net: nn.Module, criterion: Criterion, batches: Labelled) -> Evidence:
    """Gradients of the cross-entropy in eval mode: their mean for Taylor, the mean of each image's square for OBD.

    The library's own accumulator for OBD (1.6.1) keeps the last image only, because it looks parameters up by name in
    a table by parameter; so the squares are summed here.

    Args:
        net: a classifier; not changed.
        batches: images (N, C, H, W) and class indices.

    Raises:
        ModelError: no images.
    """
    if criterion == "l2":
        return {}
    net = copy.deepcopy(net).eval().requires_grad_(True)
    parameters = dict(net.named_parameters())
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    images = 0
    for x, labels in batches:
        size = len(x) if criterion == "taylor" else 1
        for i in range(0, len(x), size):
            loss = F.cross_entropy(net(x[i : i + size]), labels[i : i + size], reduction="sum")
            for name, slope in zip(sums, torch.autograd.grad(loss, list(parameters.values())), strict=True):
                sums[name] += slope if criterion == "taylor" else slope.square()
        images += len(x)
    if images == 0:
        raise ModelError(f"'{criterion}' needs at least one labelled image")
    return {name: total / images for name, total in sums.items()}


def prune(net: nn.Module, shape: Sequence[int], setting: Setting, ratio: float, found: Evidence) -> nn.Module:
    """A pruned copy of ``net``, in eval mode.

    Where option A shortcuts pad channels, which the library cannot follow, only the widths inside blocks are pruned.

    Args:
        shape: of one image (C, H, W).
        ratio: share of the channels that go, before rounding.
        found: see ``evidence``; of the same network and criterion.

    Raises:
        BackendAbsent: the library is not installed.
        ModelError: it fails on the network, or breaks it.
    """
    try:
        import torch_pruning as tp
    except ModuleNotFoundError:
        raise BackendAbsent(
            "Torch-Pruning is not installed", remedy='`pip install --editable ".[peers]"`, or leave it out'
        ) from None
    net = copy.deepcopy(net).eval().requires_grad_(True)
    for name, gradient in found.items():
        net.get_parameter(name).grad = gradient.clone()
    example = torch.zeros(1, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tp.BasePruner(
                net,
                example,
                importance=_importance(tp, setting.criterion),
                global_pruning=setting.scope != "local",
                isomorphic=setting.scope == "isomorphic",
                pruning_ratio=ratio,
                round_to=setting.round_to,
                ignored_layers=_ignored(net, shape),
            ).step()
            with torch.no_grad():
                net(example)
        except Exception as error:  # whatever it raises on a network that it cannot follow
            raise ModelError(
                f"Torch-Pruning ({setting}, ratio {ratio:.3f}): {type(error).__name__}: {error}"
            ) from error
    net.zero_grad(set_to_none=True)
    return net


@torch.no_grad()
def recalibrate(net: nn.Module, images: Iterable[Tensor]) -> None:
    """Measure every BN's running statistics anew, as the plain mean over batches (N, C, H, W); ``net`` is changed."""
    layers = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    for x in images:
        net(x)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    net.eval()


def _importance(tp: Any, criterion: Criterion) -> Any:
    match criterion:
        case "l2":
            return tp.importance.GroupMagnitudeImportance(p=2)
        case "taylor":
            return tp.importance.GroupTaylorImportance()
        case "obd":
            return tp.importance.GroupHessianImportance()


def _ignored(net: nn.Module, shape: Sequence[int]) -> list[nn.Module]:
    """The classifier; and the layers that write into a residual stream, where an option A shortcut pads it."""
    head = head_of(net, shape)
    ignored: list[nn.Module] = [] if head is None else [net.get_submodule(head)]
    if any(isinstance(module, SelectPad) for module in net.modules()):
        streams = [group for group in couple(net, shape) if group.kind == "stream"]
        ignored += [net.get_submodule(slot.layer) for group in streams for slot in group.writers]
    return ignored
