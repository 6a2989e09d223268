"""Raise a network: ``raised`` for one that is known to be good, ``accept`` for one that comes from a user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from compress.errors import ModelError
from compress.frontend.export import export, in_mode
from compress.frontend.network import RaisedNetwork
from compress.frontend.raiser import Raiser

_TOLERANCE = 1e-4  # of the largest output; the two compute the same operations, of which libraries may fuse some


@dataclass(frozen=True)
class Accepted:
    """A user's network, raised.

    Attributes:
        net: computes what the user's network computes in eval mode.
        changes: what the user's network computes otherwise in training mode, such as "2 more rand"; empty if nothing.
    """

    net: RaisedNetwork
    changes: tuple[str, ...]


def raised(net: nn.Module, shape: Sequence[int]) -> RaisedNetwork:
    """Raise a network for images of ``shape`` (C, H, W). It shares the tensors of ``net``, and is in its mode.

    A network that is raised already is returned as it is.

    Raises:
        ModelError: the forward pass fails or cannot be followed; the message names the line.

    >>> net = raised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True)), (3, 8, 8))
    >>> [node.name for node in net.graph.nodes]
    ['input_1', '_0', '_1', 'output']
    """
    return net if isinstance(net, RaisedNetwork) else _raise(net, export(net, shape), frozenset())


def accept(net: nn.Module, shape: Sequence[int]) -> Accepted:
    """Raise a user's network, and check that the result computes the same for batches of one and of three images.

    Raises:
        ModelError: see ``raised``; or the network computes something else for another batch size.
    """
    program = export(net, shape)
    frozen, changes = _training(net, shape, program)
    result = _raise(net, program, frozen)
    _compare(net, result, shape)
    return Accepted(result, changes)


def _raise(net: nn.Module, program: ExportedProgram, frozen: frozenset[str]) -> RaisedNetwork:
    raiser = Raiser(net, program, frozen)
    raiser.run()
    result = RaisedNetwork({**raiser.tensors, **raiser.layers}, raiser.graph, type(net).__name__)
    return result.train(net.training)


@torch.no_grad()
def _compare(net: nn.Module, result: nn.Module, shape: Sequence[int]) -> None:
    with in_mode(net, training=False), in_mode(result, training=False):
        for count in (1, 3):
            images = _images(net, shape, count)
            wanted, found = _tensors(net(images)), _tensors(result(images))
            for one, other in zip(wanted, found, strict=True):
                if not one.isfinite().all():
                    return  # whoever checks the weights says which layer it is
                size = float(one.abs().max()) if one.numel() else 0.0
                if one.shape != other.shape or not float((one - other).abs().max()) <= _TOLERANCE * max(size, 1e-9):
                    raise ModelError(
                        f"{type(net).__name__} computes something else for a batch of {count} than for one of 2",
                        remedy="a forward pass may not depend on the number of images, nor be random in eval mode",
                    )


def _training(net: nn.Module, shape: Sequence[int], program: ExportedProgram) -> tuple[frozenset[str], tuple[str, ...]]:
    """The tensors of batch norms that stay in eval mode, and the operations that one of the two modes lacks."""
    before = {name: value.clone() for name, value in net.named_buffers()}
    cumulative = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.momentum is None]
    try:
        for norm in cumulative:  # their average depends on the value of a counter
            norm.momentum = 0.1
        other = export(net, shape, training=True)
    except ModelError as error:
        return frozenset(), (f"it cannot be followed in training mode: {error.message}",)
    finally:
        for norm in cumulative:
            norm.momentum = None
        for name, value in net.named_buffers():
            value.data.copy_(before[name])
    tensors = {spec.arg.name: spec.target or "" for spec in other.graph_signature.input_specs}
    frozen = set[str]()
    for node in other.graph.nodes:
        if str(node.target) == "aten.batch_norm.default" and not node.args[5]:
            frozen.update(tensors[n.name] for n in node.args[1:5] if isinstance(n, fx.Node) and n.name in tensors)
    trained, evaluated = _operations(other), _operations(program)
    more = [f"{count} more {name}" for name, count in (trained - evaluated).items()]
    less = [f"{count} fewer {name}" for name, count in (evaluated - trained).items()]
    return frozenset(frozen), tuple(more + less)


def _operations(program: ExportedProgram) -> Counter[str]:
    counts: Counter[str] = Counter()
    for node in program.graph.nodes:
        name = str(node.target)
        counter = name.startswith("aten.add_") and not node.meta["val"].dtype.is_floating_point  # of batches seen
        if node.op == "call_function" and name.startswith("aten.") and not counter:
            counts[name.split(".")[1].strip("_")] += not name.startswith(("aten.sym_size", "aten._assert"))
    return +counts


def _images(net: nn.Module, shape: Sequence[int], count: int) -> Tensor:
    reference = next(iter(net.parameters()), torch.zeros(()))
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    return images.to(reference.device)


def _tensors(output: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
