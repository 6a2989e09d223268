"""The protocol that every runtime implements, and the registry that finds a runtime by a file or a name.

A backend is a module with ``require``, ``open_engine`` and ``build``, and a row in ``registries.BACKENDS``. A module is
imported when it is first used, so that a runtime that is not installed costs nothing.

>>> with open_engine(Path("resnet18_int8.onnx"), threads=2) as engine:  # doctest: +SKIP
...     logits = infer(engine, images)
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from compress.engines.metadata import Metadata
from compress.errors import BackendAbsent, EngineError
from compress.progress import SILENT, Progress
from compress.registries import BACKENDS
from compress.registry import import_own
from compress.targets import default_target, profile

if TYPE_CHECKING:  # this import would take half of a worker's startup time
    from compress.config import TargetConfig

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and element type of one input or output; a dynamic dimension is None."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]

    def accepts(self, array: Array) -> bool:
        """Whether ``array`` has this element type and a shape that fits.

        >>> TensorSpec("input", (None, 3), np.dtype("float32")).accepts(np.zeros((8, 3), np.float32))
        True
        """
        return (
            array.dtype == self.dtype
            and array.ndim == len(self.shape)
            and all(want in (None, have) for want, have in zip(self.shape, array.shape, strict=True))
        )

    def __str__(self) -> str:
        dims = "x".join("N" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name}: {self.dtype} {dims}"


@dataclass(frozen=True)
class OpenOptions:
    """How an engine is opened.

    Attributes:
        threads: intra-op threads (CPU engines).
        device: ``cpu`` or ``cuda``.
        trust: load a compiled engine even if its sidecar is missing or does not match.
    """

    threads: int = 1
    device: str = "cpu"
    trust: bool = False


class Engine(Protocol):
    """An opened engine: a context manager that maps named arrays to named arrays.

    Attributes:
        requested, provider: the execution provider that was requested, and the one that runs.
        inputs, outputs: what ``run`` takes and returns.
        metadata: the metadata in the file; None for a file that this package did not write.
        modes: all settings that a timing depends on.
        max_batch: the largest batch that it takes; None if there is no limit.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def requested(self) -> str: ...
    @property
    def provider(self) -> str: ...
    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def metadata(self) -> Metadata | None: ...
    @property
    def modes(self) -> Mapping[str, str | int | bool]: ...
    @property
    def max_batch(self) -> int | None: ...

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once and wait for the outputs.

        Raises:
            EngineError: an input is missing, unknown, or has a wrong shape or type; or the runtime failed.
        """
        ...

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Closing:
    """Make an engine a context manager: leaving the block closes it."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Opener(Protocol):
    """The functions of a module that can open a file as an engine."""

    def require(self, device: str) -> None:
        """Raise BackendAbsent if this backend cannot run; the message says what is missing and how to get it."""
        ...

    def open_engine(self, path: Path, options: OpenOptions) -> Engine: ...


class BackendModule(Opener, Protocol):
    """The functions of a backend's module.

    It may also have ``require_builder(device)``, which is asked in place of ``require`` before a build, for a backend
    that builds for devices that are elsewhere, and ``version()``, if its package does not have the engine's name.
    """

    def build(self, onnx_path: Path, out_dir: Path, target: TargetConfig, progress: Progress) -> Path: ...


# The saved network of a stage, which PyTorch runs: opened like an engine, but nothing is built.
CHECKPOINT, _CHECKPOINTS = ".safetensors", "compress.engines.checkpoint"
_WEIGHTS_ALONE = (".pth", ".pt", ".th", ".tar")


def backend(name: str) -> BackendModule:
    """The module of a backend.

    Raises:
        EngineError: no backend has that name.
    """
    if name not in BACKENDS:
        raise EngineError(f"unknown engine '{name}'", remedy=f"known: {', '.join(BACKENDS)}")
    return cast(BackendModule, _module(BACKENDS[name].module))


def _module(place: str) -> Any:
    """Import a built-in module by its full name, or a module of the user's; ``module:attribute`` is a part of one."""
    name, _, attribute = place.partition(":")
    module = importlib.import_module(name) if name.startswith("compress.") else import_own(name, "engine")
    return getattr(module, attribute) if attribute else module


def require_builder(name: str, device: str) -> None:
    """Raise BackendAbsent unless a backend's engines can be built here, though they may run elsewhere only."""
    module = backend(name)
    getattr(module, "require_builder", module.require)(device)


def version_of(name: str) -> str:
    """The version of an engine's runtime, whose package has the engine's name; "unknown" without such a package."""
    if (told := getattr(backend(name), "version", None)) is not None:
        return str(told())
    try:
        return str(getattr(importlib.import_module(name), "__version__", "unknown"))
    except ModuleNotFoundError:  # an engine of the user's own
        return "unknown"


def open_engine(path: Path, *, threads: int = 1, device: str | None = None, trust: bool = False) -> Engine:
    """Open an engine file; its suffix determines the runtime.

    Args:
        path: an engine file, or the ``model.safetensors`` that a stage has saved.
        threads: intra-op threads (CPU engines).
        device: ``cpu`` or ``cuda``; default: the runtime's usual device.
        trust: load a compiled engine even if its sidecar is missing or does not match.

    Raises:
        EngineError: there is no such file, its suffix is unknown, or the runtime cannot load it.
        BackendAbsent: the runtime or its device is not on this machine.
    """
    if path.suffix in _WEIGHTS_ALONE:
        raise EngineError(
            f"{path} holds weights, and does not say of which network",
            remedy="load it with `python -m compress baseline --set model.arch=NAME --set model.weights=FILE`, "
            f"then give runs/NAME/baseline/model{CHECKPOINT}",
        )
    name = engine_of(path)
    if name is None and path.suffix != CHECKPOINT:
        known = [f"{known.suffix} ({name})" for name, known in BACKENDS.items()]
        raise EngineError(
            f"cannot tell the engine of '{path}' by its suffix",
            remedy=f"known: {', '.join([*known, f'{CHECKPOINT} (PyTorch)'])}",
        )
    for file in engine_files(path):
        if not file.is_file():
            raise EngineError(f"no such engine file: {file}", remedy="make it with `python -m compress build`")
    module = cast(Opener, _module(_CHECKPOINTS) if name is None else backend(name))
    usual = "cpu" if name is None else BACKENDS[name].device
    return module.open_engine(path, OpenOptions(threads, device or usual, trust))


def engine_of(path: Path) -> str | None:
    """The backend of an engine file, by its suffix, and by its first bytes if several have that suffix; None if none.

    >>> engine_of(Path("resnet18_int8.xml")), engine_of(Path("resnet18.pth"))
    ('openvino', None)
    """
    magic = {name: known.magic for name, known in BACKENDS.items() if known.suffix == path.suffix}
    start = b""
    if len(magic) > 1 and path.is_file():
        with path.open("rb") as file:
            start = file.read(16)
    # One whose first bytes they are comes before one that claims none.
    ordered = sorted(magic, key=lambda name: (not magic[name] or not start.startswith(magic[name]), bool(magic[name])))
    return next(iter(ordered), None)


def engine_files(path: Path) -> tuple[Path, ...]:
    """The engine file and, if its runtime keeps the weights in a second file, that file.

    >>> [file.name for file in engine_files(Path("resnet18_int8.xml"))]
    ['resnet18_int8.xml', 'resnet18_int8.bin']
    """
    weights = next((known.weights for known in BACKENDS.values() if known.suffix == path.suffix), "")
    return (path, path.with_suffix(weights)) if weights else (path,)


def build_engine(
    engine: str, onnx_path: Path, out_dir: Path, target: TargetConfig, *, progress: Progress = SILENT
) -> Path:
    """Build the engine file of an exported network, with its sidecar ``<engine>.json`` beside it.

    Args:
        engine: a name in ``BACKENDS``.
        onnx_path: the exported file.
        out_dir: the folder that the engine file is written to.
        target: device, threads and batch that it is built for.

    Raises:
        EngineError: the file is missing or cannot be built, or the engine should run in INT8 and does not.
        BackendAbsent: the runtime or its device is not on this machine.
    """
    require_builder(engine, target.device)
    if not onnx_path.is_file():
        raise EngineError(f"no such ONNX file: {onnx_path}", remedy="make it with `python -m compress export`")
    out_dir.mkdir(parents=True, exist_ok=True)
    return backend(engine).build(onnx_path, out_dir, target, progress)


def infer(engine: Engine, batch: Array) -> Array:
    """The single output of an engine with a single input, such as a classifier's logits.

    Args:
        batch: (N, ...), fitting the engine's input.

    Raises:
        EngineError: the engine has several inputs or outputs, or rejects the batch.
    """
    if len(engine.inputs) != 1 or len(engine.outputs) != 1:
        raise EngineError(
            f"expected one input and one output, but the engine has {len(engine.inputs)} and {len(engine.outputs)}"
        )
    return engine.run({engine.inputs[0].name: batch})[engine.outputs[0].name]


def check_feeds(specs: tuple[TensorSpec, ...], feeds: Mapping[str, Array]) -> None:
    """Raise EngineError unless ``feeds`` holds exactly the inputs in ``specs``, each of a fitting shape and type."""
    for spec in specs:
        array = feeds.get(spec.name)
        if array is None:
            raise EngineError(f"input '{spec.name}' is missing", remedy=f"the engine takes {_listed(specs)}")
        if not spec.accepts(array):
            dims = "x".join(str(dim) for dim in array.shape)
            raise EngineError(f"input '{spec.name}' is {array.dtype} {dims}", remedy=f"the engine takes {spec}")
    if len(feeds) != len(specs):
        unknown = sorted(set(feeds) - {spec.name for spec in specs})
        raise EngineError(f"unknown input '{unknown[0]}'", remedy=f"the engine takes {_listed(specs)}")


def metadata_of(props: Mapping[str, str], path: Path) -> Metadata | None:
    """The metadata in the string properties of the file ``path``; None for one that this package did not write.

    Raises:
        EngineError: the properties were written by this package, but are damaged.
    """
    return Metadata.from_props(props, path) if any(key.startswith("compress.") for key in props) else None


def check_placement(engine: str, metadata: Metadata | None, path: Path) -> None:
    """Check that ``path`` was quantized for ``engine`` and for this machine.

    Raises:
        EngineError: it was quantized for a target that the engine does not run in INT8.
        BackendAbsent: it was quantized for another processor.
    """
    if metadata is None or not metadata.target:
        return
    if engine not in profile(metadata.target).engines:
        raise EngineError(
            f"{path.name} was quantized for target {metadata.target}, which {engine} does not run in INT8",
            remedy=f"quantize and export again with `--set target.name={default_target(engine)}`",
        )
    check_machine(metadata.target)


def check_machine(target: str) -> None:
    """Raise BackendAbsent if INT8 files for ``target`` are made for another processor than this machine's."""
    machines, here = profile(target).machines, platform.machine()
    if not machines or here in machines:
        return
    emulate = "; or check it under emulation with `python -m benchmarks.arm --engine FILE --root ARM64_TREE`"
    raise BackendAbsent(
        f"a file for target {target} is made for {' or '.join(machines)}, this machine is {here}",
        remedy=f"build it on such a machine{emulate if 'aarch64' in machines else ''}",
    )


def _listed(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(str(spec) for spec in specs)
