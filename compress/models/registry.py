"""Architectures by name: torchvision's ResNets, CIFAR ResNets, or a user's own factory."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torchvision.models as tv
from torch import nn

from compress.errors import ModelError
from compress.models.cifar import CifarResNet

_TORCHVISION = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
_CIFAR_DEPTHS = (20, 32, 44, 56, 110)

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(getattr(tv, name), weights=None) for name in _TORCHVISION},
    **{f"cifar_resnet{depth}": partial(CifarResNet, depth, option="A") for depth in _CIFAR_DEPTHS},
    **{f"cifar_resnet{depth}_b": partial(CifarResNet, depth, option="B") for depth in _CIFAR_DEPTHS},
}


def build(arch: str, num_classes: int | None = None, args: Mapping[str, Any] | None = None) -> nn.Module:
    """Construct an untrained network.

    Args:
        arch: a name in ``ARCHITECTURES``, or ``package.module:factory``.
        num_classes: passed on where the factory takes it; none leaves the factory's default.
        args: further keyword arguments.

    Raises:
        ModelError: an unknown name, a factory that cannot be imported, or one that fails.

    >>> build("cifar_resnet20", 100).linear.out_features
    100
    """
    factory = _factory(arch)
    keywords = dict(args or {})
    if num_classes is not None and _takes(factory, "num_classes"):
        keywords.setdefault("num_classes", num_classes)
    try:
        net = factory(**keywords)
    except Exception as error:
        raise ModelError(f"building '{arch}' with {keywords} failed: {type(error).__name__}: {error}") from error
    if not isinstance(net, nn.Module):
        raise ModelError(f"'{arch}' returned a {type(net).__name__}, not a torch.nn.Module")
    return net


def _factory(arch: str) -> Callable[..., nn.Module]:
    if ":" not in arch:
        if arch not in ARCHITECTURES:
            close = difflib.get_close_matches(arch, ARCHITECTURES, n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise ModelError(
                f"unknown architecture '{arch}'",
                remedy=f"{hint}known: {', '.join(ARCHITECTURES)}; or your own as 'package.module:factory'",
            )
        return ARCHITECTURES[arch]
    module_name, _, name = arch.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        raise ModelError(f"cannot import '{module_name}': {error}", remedy="is its folder on PYTHONPATH?") from error
    except AttributeError:
        raise ModelError(f"module '{module_name}' has no '{name}'") from None
    if not callable(factory):
        raise ModelError(f"'{arch}' is not callable")
    return factory  # type: ignore[no-any-return]


def _takes(factory: Callable[..., Any], keyword: str) -> bool:
    parameters = inspect.signature(factory).parameters
    return keyword in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
