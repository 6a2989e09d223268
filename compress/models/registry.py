"""Build architectures by name: torchvision's ResNets, CIFAR ResNets, networks of timm, or a user's own factory."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torchvision.models as tv
from torch import nn

from compress.errors import ModelError
from compress.models import timm_nets
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


CLASS_ARGUMENTS = ("num_classes", "n_classes", "classes", "num_labels")
"""What the argument of a factory that says how many classes there are may be called."""


def build(arch: str, num_classes: int | None = None, args: Mapping[str, Any] | None = None) -> nn.Module:
    """Construct an untrained network.

    Args:
        arch: a name in ``ARCHITECTURES``; ``timm:NAME``; or ``package.module:factory``: a class of nn.Module, or a
            function that the module (or one within it) defines. Importing the module runs its code, so the name must be
            the user's own word, never a file's.
        num_classes: passed on by the first name of ``CLASS_ARGUMENTS`` that the factory takes; to a factory with
            ``**kwargs`` as ``num_classes``, unless it refuses that. None leaves the factory's default.
        args: further keyword arguments. The number of classes, if it is among them, comes before ``num_classes``.

    Raises:
        ModelError: an unknown name, a factory that cannot be imported, or one that fails or makes no network.

    >>> build("cifar_resnet20", 100).linear.out_features
    100
    """
    factory = factory_of(arch)
    keywords = dict(args or {})
    if num_classes is None or keywords.keys() & set(CLASS_ARGUMENTS):
        return _made(arch, factory, keywords)
    parameter = _class_parameter(factory)
    if parameter is not None:
        return _made(arch, factory, {parameter.name: num_classes, **keywords})
    if not _takes_any(factory):
        return _made(arch, factory, keywords)
    try:
        return _made(arch, factory, {"num_classes": num_classes, **keywords})
    except ModelError as error:
        if isinstance(error.__cause__, TypeError) and "'num_classes'" in str(error.__cause__):
            return _made(arch, factory, keywords)
        raise


def needs_class_count(arch: str, args: Mapping[str, Any]) -> bool:
    """Whether the architecture cannot be built without a number of classes.

    Raises:
        ModelError: see ``factory_of``.
    """
    parameter = _class_parameter(factory_of(arch))
    return parameter is not None and parameter.default is parameter.empty and parameter.name not in args


def preprocessing_of(arch: str) -> dict[str, Any] | None:
    """The preprocessing that goes with an architecture, by the keys of ``[data]``; None where none is known.

    Raises:
        ModelError: see ``timm_nets.preprocessing``.

    >>> preprocessing_of("resnet18")
    """
    return timm_nets.preprocessing(arch.removeprefix(timm_nets.PREFIX)) if arch.startswith(timm_nets.PREFIX) else None


def is_factory(arch: str) -> bool:
    """Whether ``arch`` names a user's own factory, which is imported, and no built-in architecture.

    >>> is_factory("resnet18"), is_factory("timm:resnet50d"), is_factory("my_nets:small")
    (False, False, True)
    """
    return ":" in arch and not arch.startswith(timm_nets.PREFIX)


def factory_of(arch: str) -> Callable[..., nn.Module]:
    """What ``build`` calls for ``arch``.

    Raises:
        ModelError: an unknown name, or a factory that cannot be imported or is not one.
    """
    if arch.startswith(timm_nets.PREFIX):
        return timm_nets.factory(arch.removeprefix(timm_nets.PREFIX))
    if not is_factory(arch):
        if arch not in ARCHITECTURES:
            close = difflib.get_close_matches(arch, ARCHITECTURES, n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            known = ", ".join(ARCHITECTURES)
            raise ModelError(
                f"unknown architecture '{brief(arch, 100)}'",
                remedy=f"{hint}known: {known}; 'timm:NAME'; or your own as 'package.module:factory'",
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
    """Whether this is a class of networks, a function that the module or a submodule defines, or a partial of any."""
    if isinstance(factory, partial):
        return inspect.isfunction(factory.func) or _makes_networks(factory.func, module)
    if inspect.isclass(factory):
        return issubclass(factory, nn.Module)
    return inspect.isfunction(factory) and f"{factory.__module__}.".startswith(f"{module.__name__}.")


def _made(arch: str, factory: Callable[..., nn.Module], keywords: Mapping[str, Any]) -> nn.Module:
    """Call a factory.

    Raises:
        ModelError: it fails, with its own error as the cause, or returns something else than a network.
    """
    try:
        net: object = factory(**keywords)
    except ModelError:
        raise
    except Exception as error:
        what = f"building '{arch}' with {brief(keywords)} failed: {type(error).__name__}: {brief(error)}"
        raise ModelError(what, remedy="model.args gives a factory its keyword arguments") from error
    if isinstance(net, nn.Module):
        return net
    inside = list(net.values()) if isinstance(net, Mapping) else list(net) if isinstance(net, tuple | list) else []
    held = [type(part).__name__ for part in inside if isinstance(part, nn.Module)]
    raise ModelError(
        f"'{arch}' returned a {type(net).__name__}{f' with {held[0]} in it' if held else ''}, not a torch.nn.Module",
        remedy="write a function that calls it and returns the network alone, and set model.arch to that",
    )


def _parameters(factory: Callable[..., Any]) -> Iterable[inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # not written in Python
        return ()


def _class_parameter(factory: Callable[..., Any]) -> inspect.Parameter | None:
    """The argument for the number of classes: one of ``CLASS_ARGUMENTS`` with a number, or nothing, as its default."""
    named = {
        parameter.name: parameter
        for parameter in _parameters(factory)
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and (parameter.default is parameter.empty or isinstance(parameter.default, int | None))
    }
    return next((named[name] for name in CLASS_ARGUMENTS if name in named), None)


def _takes_any(factory: Callable[..., Any]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in _parameters(factory))
