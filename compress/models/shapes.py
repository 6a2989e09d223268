"""The shape of each layer, as plain JSON: with it a pruned or BN-folded network is loaded without pickled classes.

``describe`` reads the layers whose shape surgery may change; ``reshape`` rebuilds them in a freshly constructed
network, so that a state_dict of the changed shapes loads strictly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from compress.errors import CheckpointError
from compress.models.layers import Shape, make_layer, plain, shape_of, trained_like
from compress.parse import brief


def describe(net: nn.Module) -> dict[str, Shape]:
    """The shape of every layer by its dotted name, the first one of a layer that has several."""
    shapes = ((name, shape_of(module)) for name, module in net.named_modules())
    return {name: shape for name, shape in shapes if shape is not None}


def replace_module(net: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule called ``name`` by ``module``, under every name that it has in ``net``."""
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
            if current != plain(shape):
                if not name:
                    raise ValueError("no name: that is the network itself")
                replace_module(net, name, trained_like(net.get_submodule(name), make_layer(shape)))
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"layer '{brief(name, 100)}' is said to be {brief(dict(shape))}, which the architecture lacks "
                f"({brief(error)})",
                remedy="the architecture's code has changed since the model was saved; use the version that saved it",
            ) from None
