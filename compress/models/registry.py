"""Build architectures by name: torchvision's ResNets, CIFAR ResNets, or a user's own factory."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torchvision.models as tv
from torch import nn

from compress.errors import ModelError
from compress.models.cifar import CifarResNet
from compress.parse import brief
from compress.startup import import_own

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
        arch: a name in ``ARCHITECTURES``, or ``package.module:factory``: a class of nn.Module, or a function that the
            module (or one within it) defines. Importing the module runs its code, so the name must be the user's own
            word, never a file's.
        num_classes: passed on where the factory takes it; none leaves the factory's default.
        args: further keyword arguments.

    Raises:
        ModelError: an unknown name, a factory that cannot be imported, or one that fails.

    >>> build("cifar_resnet20", 100).linear.out_features
    100
    """
    factory = factory_of(arch)
    keywords = dict(args or {})
    if num_classes is not None and _takes(factory, "num_classes"):
        keywords.setdefault("num_classes", num_classes)
    try:
        net = factory(**keywords)
    except Exception as error:
        what = f"building '{arch}' with {brief(keywords)} failed: {type(error).__name__}: {brief(error)}"
        raise ModelError(what) from error
    if not isinstance(net, nn.Module):
        raise ModelError(f"'{arch}' returned a {type(net).__name__}, not a torch.nn.Module")
    return net


def is_factory(arch: str) -> bool:
    """Whether ``arch`` names a user's own factory, which is imported, and no built-in architecture.

    >>> is_factory("resnet18"), is_factory("my_nets:small")
    (False, True)
    """
    return ":" in arch


def factory_of(arch: str) -> Callable[..., nn.Module]:
    """What ``build`` calls for ``arch``.

    Raises:
        ModelError: an unknown name, or a factory that cannot be imported or is not one.
    """
    if not is_factory(arch):
        if arch not in ARCHITECTURES:
            close = difflib.get_close_matches(arch, ARCHITECTURES, n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise ModelError(
                f"unknown architecture '{brief(arch, 100)}'",
                remedy=f"{hint}known: {', '.join(ARCHITECTURES)}; or your own as 'package.module:factory'",
            )
        return ARCHITECTURES[arch]
    module_name, _, name = arch.partition(":")
    try:
        module = import_own(module_name)
    except ImportError as error:
        raise ModelError(f"cannot import '{module_name}': {error}", remedy="is its folder on PYTHONPATH?") from error
    except Exception as error:  # the module's own code, and names that are none, such as '' or '.x'
        raise ModelError(f"importing '{module_name}' failed: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        raise ModelError(f"module '{module_name}' has no '{name}'")
    factory = getattr(module, name)
    if not _makes_networks(factory, module):
        raise ModelError(
            f"'{arch}' is not a factory of networks",
            remedy=f"name a class of torch.nn.Module, or a function that '{module_name}' defines",
        )
    return factory  # type: ignore[no-any-return]


def _makes_networks(factory: object, module: ModuleType) -> bool:
    """Whether this is a class of networks, a function that the module or a submodule defines, or a partial of it."""
    if isinstance(factory, partial):
        return _makes_networks(factory.func, module)
    if inspect.isclass(factory):
        return issubclass(factory, nn.Module)
    return inspect.isfunction(factory) and f"{factory.__module__}.".startswith(f"{module.__name__}.")


def _takes(factory: Callable[..., Any], keyword: str) -> bool:
    parameters = inspect.signature(factory).parameters
    return keyword in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
