"""Bring a freshly built network into the form that everything else expects: plain layers of float32."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from compress.errors import ModelError
from compress.frontend.export import in_mode
from compress.parse import brief
from compress.progress import SILENT, Progress


def prepare(net: nn.Module, shape: tuple[int, int, int] | None, progress: Progress = SILENT) -> nn.Module:
    """Make ``net``, in place, a network of plain layers with float32 weights, and say what changed.

    Args:
        net: as its factory built it.
        shape: of one input, (channels, height, width); None leaves lazy layers as they are.

    Raises:
        ModelError: a lazy layer cannot be initialised on such an input.
    """
    as_float32(net, progress)
    if shape is not None:
        materialize(net, shape)
    remove_parametrizations(net)
    return net


def as_float32(net: nn.Module, progress: Progress = SILENT) -> None:
    """Convert the weights and buffers of a network in half or double precision to float32, and say so.

    >>> as_float32(net := nn.Linear(1, 1).half())
    >>> net.weight.dtype
    torch.float32
    """
    tensors = [*net.parameters(), *net.buffers()]
    other = {tensor.dtype for tensor in tensors if tensor.is_floating_point()} - {torch.float32}
    if other:
        named = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in other))
        progress.note(f"the network is built in {named}: converted to float32")
        net.float()


def materialize(net: nn.Module, shape: tuple[int, int, int]) -> None:
    """Initialise lazy layers, such as ``nn.LazyConv2d``, by one run on zeros; other networks are not run.

    Args:
        shape: of one input, (channels, height, width).

    Raises:
        ModelError: the network does not run on such an input, or does not reach one of its lazy layers.

    >>> net = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU())
    >>> materialize(net, (3, 8, 8))
    >>> net[0]
    Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
    """
    if not is_lazy(net):
        return
    with in_mode(net, training=False), torch.no_grad():
        try:
            net(torch.zeros(1, *shape))
        except Exception as error:  # the network's own code may raise anything
            raise ModelError(
                f"the network has lazy layers and does not run on an input of {shape}: {brief(error)}",
                remedy="check data.input_size and data.channels against the network",
            ) from None
    if is_lazy(net):
        left = next(name for name, value in net.state_dict().items() if nn.parameter.is_lazy(value))
        raise ModelError(
            f"the lazy layer of '{left}' is not used when the network runs",
            remedy="remove it from the network, or give it its sizes",
        )


def is_lazy(net: nn.Module) -> bool:
    """Whether the network has layers whose sizes its first input determines."""
    return any(nn.parameter.is_lazy(tensor) for tensor in (*net.parameters(), *net.buffers()))


def remove_parametrizations(net: nn.Module) -> list[str]:
    """Replace weights that are computed anew in each forward by plain ones of the present value.

    That is ``nn.utils.parametrize`` (the new ``weight_norm`` and ``spectral_norm`` among them), the old hooks of these
    two, and the masks of ``nn.utils.prune``. Such networks can be neither copied nor traced.

    Returns:
        the names of the weights.

    >>> net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    >>> remove_parametrizations(net), list(net.state_dict())
    (['0.weight'], ['0.bias', '0.weight'])
    """
    with in_mode(net, training=False):  # in training a spectral norm would change its estimate
        return _remove_parametrizations(net)


def _remove_parametrizations(net: nn.Module) -> list[str]:
    removed = []
    for prefix, module in list(net.named_modules()):
        names = list(module.parametrizations) if parametrize.is_parametrized(module) else []
        for name in names:
            parametrize.remove_parametrizations(module, name)
        for hook in list(module._forward_pre_hooks.values()):
            name = getattr(hook, "_tensor_name", getattr(hook, "name", ""))
            match hook:
                case WeightNorm():
                    remove_weight_norm(module, name)
                case SpectralNorm():
                    remove_spectral_norm(module, name)
                case prune.BasePruningMethod():
                    prune.remove(module, name)  # type: ignore[no-untyped-call]
                case _:
                    continue
            names.append(name)
        removed += [f"{prefix}.{name}" if prefix else name for name in names]
    return removed
