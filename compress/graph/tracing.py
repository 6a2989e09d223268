"""The forward pass as a graph of layer calls, with the shape of every value."""

from __future__ import annotations

import copy
import inspect
import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from compress.errors import ModelError
from compress.graph.removal import drop_removed
from compress.models.cifar import SelectPad
from compress.models.removed import Removed

_TORCH = str(Path(torch.__file__).parent)
_FRAME = re.compile(r'File "(?P<file>.+)", line (?P<line>\d+), in \S+\n\s+(?P<code>.+)')


class _Tracer(fx.Tracer):
    """Treat torch.nn layers, and this package's own, as leaves: what is inside them only moves data."""

    record_stack_traces = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, SelectPad | Removed) or super().is_leaf_module(m, module_qualified_name)


def symbolic_trace(net: nn.Module) -> fx.Graph:
    """The graph of ``net.forward``, with optional arguments at their defaults and without removed branches.

    Raises:
        ModelError: the forward does not take exactly one input, or depends on its values; the message names the line.

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
    """The module that computes ``net`` without removed branches: ``net`` itself, or its graph if branches were removed.

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


@dataclass(frozen=True)
class Trace:
    """The forward pass as a graph.

    Attributes:
        modules: the leaf layers, by the names that the graph's nodes use.
        shapes: shape of each node whose value is a tensor, for a batch of two.
    """

    graph: fx.Graph
    modules: Mapping[str, nn.Module]
    shapes: Mapping[fx.Node, tuple[int, ...]]


class _ShapeReader(fx.Interpreter):
    """Run the graph and record shapes; a value that contains several tensors is refused."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            self.shapes[n] = tuple(value.shape)
        elif n.op != "output" and any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value)):
            raise ModelError(
                f"cannot follow the channels through {where(n)}: it returns several tensors",
                remedy="rewrite it with operations that return one tensor each",
            )
        return value


def trace(net: nn.Module, shape: Sequence[int]) -> Trace:
    """Trace ``net`` in eval mode on a batch of two images of ``shape`` (C, H, W). ``net`` itself is not changed.

    Raises:
        ModelError: see ``symbolic_trace``; or the network fails on such a batch.
    """
    root = copy.deepcopy(net).to("meta").eval()
    graph = symbolic_trace(root)
    reader = _ShapeReader(fx.GraphModule(root, graph))
    try:
        with torch.no_grad():
            reader.run(torch.empty(2, *shape, device="meta"))
    except ModelError:
        raise
    except Exception as error:
        reason = str(error).partition("\nWhile executing")[0].strip()
        raise ModelError(
            f"{type(net).__name__} fails on a batch of images of shape {tuple(shape)}: {reason}",
            remedy="check data.input_size and data.channels against what the network expects",
        ) from error
    return Trace(graph, dict(root.named_modules()), reader.shapes)


def where(node: fx.Node) -> str:
    """Describe a node: the operation, the module that calls it, and the line of source if the tracer knows it."""
    operation = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    modules = list(node.meta.get("nn_module_stack", {}).values())
    text = f"'{operation}'" + (f" in '{modules[-1][0]}'" if modules and modules[-1][0] != operation else "")
    frames = [m for m in _FRAME.finditer(node.stack_trace or "") if not from_torch(m["file"])]
    return text + (f" ({frames[-1]['file']}:{frames[-1]['line']}: {frames[-1]['code'].strip()})" if frames else "")
