"""What modules use of TensorRT, read from their source: so a test can hold all of it against the real bindings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.profiling import guest
from compress.engines import tensorrt

_OWN = {"tensorrt": "standard.py", "tensorrt-rtx": "rtx.py"}  # what one edition alone is asked
_FILES = sorted(Path(tensorrt.__file__).parent.glob("*.py"))


def sources(edition: str) -> list[Path]:
    """Every module that calls an edition, and the script that times pieces on a device."""
    others = {own for name, own in _OWN.items() if name != edition}
    return [*(file for file in _FILES if file.name not in others), Path(guest.__file__)]


# How these modules name what they get from TensorRT; ``self._context`` is a ``context``.
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
    "inspector": "EngineInspector",
    "native": "ILayer",
    "pooling": "IPoolingLayer",
    "elementwise": "IElementWiseLayer",
    "runtime_config": "IRuntimeConfig",
    "runtime_cache": "IRuntimeCache",
}


@dataclass(frozen=True)
class Usage:
    """
    Attributes:
        paths: dotted names used of the module, without the ``trt.``.
        calls: (class, method or attribute, number of arguments; None where it is not called).
        stores: (class, attribute) that are assigned to.
        overrides: (class, method, names of its arguments) that subclasses define.
    """

    paths: frozenset[str]
    calls: frozenset[tuple[str, str, int | None]]
    stores: frozenset[tuple[str, str]]
    overrides: frozenset[tuple[str, str, tuple[str, ...]]]


def usage(edition: str) -> Usage:
    """What an edition is asked for."""
    paths, calls, stores, overrides = set(), set(), set(), set()
    for source in sources(edition):
        tree = _of(edition, ast.parse(source.read_text(encoding="utf-8")))
        called = {node.func: node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                overrides |= set(_overrides(node))
            if not isinstance(node, ast.Attribute):
                continue
            call = called.get(node)
            arguments = None if call is None else len(call.args) + len(call.keywords)
            module, _, path = ast.unparse(node).partition(".")
            owner = _class_of(node.value)
            if module == "trt" and path:
                paths.add(path)
                if arguments is not None and path[0].isupper() and "." not in path:
                    calls.add((path, "__init__", arguments))
            elif owner and isinstance(node.ctx, ast.Store) and node.attr != "__class__":
                stores.add((owner, node.attr))
            elif owner:
                calls.add((owner, node.attr, arguments))
    return Usage(frozenset(paths), frozenset(calls), frozenset(stores), frozenset(overrides))


def _of(edition: str, tree: ast.Module) -> ast.Module:
    """A module without the classes that only the other edition is asked by."""
    if edition == "tensorrt":
        tree.body = [node for node in tree.body if not (isinstance(node, ast.ClassDef) and "RTX" in node.name)]
    return tree


def untold(source: Path) -> Iterator[str]:
    """Attributes taken of something that was got from TensorRT under a name that ``CLASSES`` does not know."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    got = {
        target.id: node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _from_tensorrt(node.value)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id not in CLASSES
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in got:
            yield f"{source.name}:{node.lineno}: {ast.unparse(node)}"


def _from_tensorrt(call: ast.Call) -> bool:
    function = call.func
    return isinstance(function, ast.Attribute) and (
        _class_of(function.value) is not None or ast.unparse(function).startswith("trt.")
    )


def _class_of(owner: ast.expr) -> str | None:
    """The TensorRT class of ``context`` or ``self._context``."""
    if isinstance(owner, ast.Name):
        return CLASSES.get(owner.id)
    if isinstance(owner, ast.Attribute) and ast.unparse(owner.value) == "self":
        return CLASSES.get(owner.attr.removeprefix("_"))
    return None


def _overrides(node: ast.ClassDef) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for base in node.bases:
        if ast.unparse(base).startswith("trt."):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    arguments = tuple(argument.arg for argument in method.args.args[1:])
                    yield ast.unparse(base).removeprefix("trt."), method.name, arguments
