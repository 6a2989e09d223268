"""The registry of lint rules.

A rule reads the graph and the target's profile and yields (node, what is wrong and its consequence). To add a rule,
write a function with ``@rule`` in a module of this folder; the rule's name is the function's name, with dashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from compress.export.qdq import Graph
from compress.targets import Profile

Severity = Literal["error", "warning"]
Faults = Iterator[tuple[str, str]]
Check = Callable[[Graph, Profile], Faults]


class Rule(NamedTuple):
    """A check, with the severity and the remedy that its findings share."""

    name: str
    severity: Severity
    remedy: str
    check: Check


RULES: list[Rule] = []

REQUANTIZE = "quantize and export again with `--set target.name={target}`"


def rule(severity: Severity, remedy: str = REQUANTIZE) -> Callable[[Check], Check]:
    """Register a check; ``{target}`` in the remedy becomes the target's name."""

    def register(check: Check) -> Check:
        RULES.append(Rule(check.__name__.replace("_", "-"), severity, remedy, check))
        return check

    return register


def tensorrt_runs(want: Profile) -> bool:
    """Whether an edition of TensorRT runs the files; the two read and type them alike."""
    return not {"tensorrt", "tensorrt-rtx"}.isdisjoint(want.engines)


def onnxruntime_runs(want: Profile) -> bool:
    """Whether ONNX Runtime runs the files: its integer kernels include a layer and the Q after it."""
    return "onnxruntime" in want.engines
