"""The forward pass as a graph of layer calls, for pruning, quantization and export alike."""

from __future__ import annotations

import inspect
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from compress.errors import ModelError
from compress.models.cifar import SelectPad
from compress.models.removed import Removed, drop_removed

_TORCH = str(Path(torch.__file__).parent)


class _Tracer(fx.Tracer):
    """torch.nn layers stay whole, and so do our own: their inside is data movement, not arithmetic."""

    record_stack_traces = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, SelectPad | Removed) or super().is_leaf_module(m, module_qualified_name)


def symbolic_trace(net: nn.Module) -> fx.Graph:
    """The graph of ``net.forward``, with its optional arguments at their defaults and without removed branches.

    Raises:
        ModelError: the forward takes other than one input, or depends on its values; names the line.

    >>> [node.name for node in symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())).nodes]
    ['input_1', '_0', '_1', 'output']
    """
    try:
        graph = _Tracer().trace(net, concrete_args=_defaults(net))
    except ModelError:
        raise
    except Exception as error:  # fx runs the network's own code, which may raise anything
        raise ModelError(
            f"cannot trace {type(net).__name__}.forward{_line_of(error)}: {error}",
            remedy="a forward pass may not branch or loop on the values or shapes of its tensors",
        ) from error
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.args:  # fx keeps the optional arguments, and checks that they are constant
            for user in list(node.users):
                graph.erase_node(user)
            graph.erase_node(node)
    drop_removed(graph, net)
    return graph


def without_removed(net: nn.Module) -> nn.Module:
    """The module to hand to whatever runs ``net`` as it is written: itself, or its graph where branches were removed.

    Raises:
        ModelError: see ``symbolic_trace``.
    """
    if not any(isinstance(module, Removed) for module in net.modules()):
        return net
    return fx.GraphModule(net, symbolic_trace(net))


def from_torch(filename: str) -> bool:
    """Whether a source file is PyTorch's own."""
    return filename.startswith(_TORCH)


def _defaults(net: nn.Module) -> dict[str, Any]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = [p for p in inspect.signature(net.forward).parameters.values() if p.kind not in kinds]
    inputs = [p.name for p in parameters if p.default is p.empty]
    if len(inputs) != 1:
        raise ModelError(
            f"{type(net).__name__}.forward takes {len(inputs)} inputs ({', '.join(inputs)}), not one",
            remedy="wrap it in a module whose forward takes the image batch alone",
        )
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _line_of(error: Exception) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not from_torch(f.filename)]
    frames = [f for f in frames if f.filename != __file__]
    return f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""
