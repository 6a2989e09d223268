"""Run a network step by step and keep the tensors, so that after a change only the later steps run again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.graph.segments import Segment
from compress.graph.tracing import Trace

Values = dict[str, Tensor]
"""By graph node: the values that the nodes after some point still need."""

See = Callable[[fx.Node, tuple[Any, ...], Any], None]


class Executor:
    """The steps of a forward pass: one per segment, or one for several segments that overlap.

    It runs any network with the same graph: the original, or a copy with other weights.

    Attributes:
        segments: names of the segments of each step.
    """

    def __init__(self, traced: Trace, segments: Sequence[Segment]) -> None:
        self._nodes = list(traced.graph.nodes)
        place = {node.name: index for index, node in enumerate(self._nodes)}
        first_call = {str(n.target): place[n.name] for n in reversed(self._nodes) if n.op == "call_module"}
        spans: list[tuple[int, int, tuple[str, ...]]] = []
        for s in sorted(segments, key=lambda s: place[s.result]):
            start, end = min(first_call[layer] for layer in s.layers), place[s.result] + 1
            names: tuple[str, ...] = (s.name,)
            while spans and start < spans[-1][1]:
                before, *_, inside = spans.pop()
                start, names = min(start, before), (*inside, *names)
            spans.append((start, end, names))
        self.segments = tuple(names for *_, names in spans)
        ends = [end for _, end, _ in spans[:-1]] + [len(self._nodes)]
        starts = [0, *ends[:-1]]
        self._steps = [self._nodes[start:end] for start, end in zip(starts, ends, strict=True)]
        self._live = [self._needed_after(end) for end in ends]
        self._spent = [self._unused_after(step) for step in range(len(self._steps))]
        self._step_of = {node.name: step for step, nodes in enumerate(self._steps) for node in nodes}
        self._first_call = {layer: self._step_of[self._nodes[index].name] for layer, index in first_call.items()}

    def __len__(self) -> int:
        return len(self._steps)

    def step_of(self, node: str) -> int:
        """The step in which a graph node is computed."""
        return self._step_of[node]

    def step_calling(self, layer: str) -> int:
        """The step in which a layer is first called."""
        return self._first_call[layer]

    @torch.no_grad()
    def run(self, step: int, net: nn.Module, values: Mapping[str, Tensor], see: See | None = None) -> Values:
        """Run one step of ``net``. Each value is released after its last use.

        Args:
            values: the result of the previous step; ``start`` makes that of the first step.
            see: called with each node of the step, its operands, and its value before anything can change it in place.

        Returns:
            the values that later steps need; after the last step the network's outputs.
        """
        return self._run(step, net, values, see)

    def slopes(
        self, step: int, net: nn.Module, values: Values, loss: Callable[[Values], Tensor], see: See | None = None
    ) -> Values:
        """Gradients of a loss with respect to the values that a step reads. Only this step is kept for backward.

        Args:
            values: the result of the previous step; ``start`` makes that of the first step.
            loss: computed from the step's result, see ``run``.
            see: as for ``run``; a hook on its values receives their gradients, see ``Tensor.register_hook``.

        Returns:
            the gradients of the floating-point values that the loss depends on.
        """
        inputs = {n: v for n, v in values.items() if isinstance(v, Tensor) and v.is_floating_point()}
        leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
        with torch.enable_grad():
            own = {name: leaf.clone() for name, leaf in leaves.items()}  # an in-place operation must not change a leaf
            total = loss(self._run(step, net, {**values, **own}, see))
            if not total.requires_grad:
                return {}
            found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        return {name: slope for name, slope in zip(leaves, found, strict=True) if slope is not None}

    def _run(self, step: int, net: nn.Module, values: Mapping[str, Tensor], see: See | None) -> Values:
        known: dict[str, Any] = dict(values)
        for node in self._steps[step]:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: known[n.name])
            match node.op:
                case "placeholder":
                    value = known["images"]
                case "get_attr":
                    value = _attribute(net, str(node.target))
                case "call_module":
                    value = net.get_submodule(str(node.target))(*args, **kwargs)
                case "call_method":
                    value = getattr(args[0], str(node.target))(*args[1:], **kwargs)
                case "call_function":
                    assert callable(node.target)
                    value = node.target(*args, **kwargs)
                case _:
                    value = args[0]
            known[node.name] = value
            if see is not None:
                see(node, args, value)
            for name in self._spent[step][node.name]:
                del known[name]
            del args, kwargs, value
        return {name: known[name] for name in self._live[step]}

    def start(self, images: Iterable[Tensor]) -> list[Values]:
        """Convert batches of images (N, C, H, W) into the values that the first step reads."""
        return [{"images": batch} for batch in images]

    def finish(self, step: int, net: nn.Module, values: Values) -> Any:
        """Run from a step to the end and return the network's outputs."""
        for index in range(step, len(self)):
            values = self.run(index, net, values)
        (output,) = values.values()
        return output

    def first_non_finite(self, net: nn.Module, images: Tensor) -> str:
        """The first layer (or graph node) whose output has a NaN or an infinity; the batch must have caused one."""
        found: list[str] = []

        def see(node: fx.Node, args: tuple[Any, ...], value: Any) -> None:
            if isinstance(value, Tensor) and not value.isfinite().all():
                found.append(str(node.target) if node.op == "call_module" else node.name)

        (values,) = self.start([images])
        for step in range(len(self)):
            values = self.run(step, net, values, see)
        return found[0]

    def _needed_after(self, end: int) -> list[str]:
        if end == len(self._nodes):
            return [self._nodes[-1].name]
        later = set(self._nodes[end:])
        return [node.name for node in self._nodes[:end] if any(user in later for user in node.users)]

    def _unused_after(self, step: int) -> dict[str, list[str]]:
        """By node of a step: the values that no later node needs."""
        nodes = self._steps[step]
        last = {source.name: node.name for node in nodes for source in (node, *node.all_input_nodes)}
        spent: dict[str, list[str]] = {node.name: [] for node in nodes}
        for source in last.keys() - set(self._live[step]):
            spent[last[source]].append(source)
        return spent


def _attribute(net: nn.Module, name: str) -> Any:
    owner, _, attribute = name.rpartition(".")
    return getattr(net.get_submodule(owner), attribute)
