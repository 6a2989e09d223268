"""What a module uses of TensorRT, read from its source: so a test can hold all of it against the real bindings."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

# How compress/engines/tensorrt.py names what it gets from TensorRT.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "problem": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "tensor": "ITensor",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}


@dataclass(frozen=True)
class Usage:
    """
    Attributes:
        paths: dotted names used of the module, without the ``trt.``.
        calls: (class, method or attribute, number of arguments; None where it is not called).
    """

    paths: frozenset[str]
    calls: frozenset[tuple[str, str, int | None]]


def usage(source: Path) -> Usage:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    called = {node.func: node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    paths, calls = set(), set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner, _, rest = ast.unparse(node).partition(".")
        call = called.get(node)
        arguments = None if call is None else len(call.args) + len(call.keywords)
        if owner == "trt" and rest:
            paths.add(rest)
            if arguments is not None and rest[0].isupper() and "." not in rest:
                calls.add((rest, "__init__", arguments))
        elif owner in CLASSES and rest.isidentifier():
            calls.add((CLASSES[owner], rest, arguments))
    return Usage(frozenset(paths), frozenset(calls))
