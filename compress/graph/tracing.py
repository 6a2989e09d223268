"""The forward pass as a graph of layer calls, with the shape of every value."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from compress.errors import ModelError
from compress.frontend.export import from_torch
from compress.frontend.raising import raised

_FRAME = re.compile(r'File "(?P<file>.+)", line (?P<line>\d+), in \S+\n\s+(?P<code>.+)')


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
        ModelError: see ``raised``; or the network fails on such a batch.
    """
    root = copy.deepcopy(raised(net, shape)).to("meta").eval()
    graph = root.live_graph()
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
    """Describe a node: the operation, the module that calls it, and the line of source if it is known."""
    operation = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    modules = list(node.meta.get("nn_module_stack", {}).values())
    text = f"'{operation}'" + (f" in '{modules[-1][0]}'" if modules and modules[-1][0] not in ("", operation) else "")
    frames = [m for m in _FRAME.finditer(node.stack_trace or "") if not from_torch(m["file"])]
    return text + (f" ({frames[-1]['file']}:{frames[-1]['line']}: {frames[-1]['code'].strip()})" if frames else "")
