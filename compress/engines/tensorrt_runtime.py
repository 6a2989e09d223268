"""What building and running a plan share: checking for TensorRT, formatting its messages, deserializing a plan."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from compress.errors import BackendAbsent, EngineError


class Loaded(NamedTuple):
    """A deserialized engine and the objects that it needs to live; ``errors`` are the errors that TensorRT logged."""

    engine: Any
    runtime: Any
    logger: Any
    errors: list[str]


def require(device: str) -> None:
    """Raise BackendAbsent, naming all that is missing, unless TensorRT loads and there is an NVIDIA GPU."""
    missing = []
    try:
        if not hasattr(importlib.import_module("tensorrt"), "Builder"):  # any folder of that name could be imported
            missing.append("the Python package 'tensorrt'")
    except ModuleNotFoundError as error:
        missing.append(f"the Python package '{error.name}'")
    except ImportError as error:
        missing.append(f"its libraries ({error})")
    if not torch.cuda.is_available():
        missing.append("an NVIDIA GPU that torch can see")
    if missing:
        raise BackendAbsent(
            f"TensorRT cannot run on this machine: missing {' and '.join(missing)}",
            remedy="on a machine with an NVIDIA GPU: `pip install tensorrt` (on a Jetson it comes with JetPack); "
            "or use `--target onnxruntime`",
        )
    if device != "cuda":
        raise EngineError(f"TensorRT runs on a GPU, not on '{device}'", remedy="use `--device cuda`")


def make_logger(trt: Any, errors: list[str]) -> Any:
    """A TensorRT logger that keeps the error messages, so that an exception can contain them."""

    class Keeper(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                errors.append(msg)

    return Keeper()


def in_words(errors: Sequence[str]) -> str:
    """The errors that TensorRT logged, on one line."""
    return "; ".join(errors) or "it gave no reason"


@contextmanager
def starting(errors: Sequence[str]) -> Iterator[None]:
    """Turn the bindings' bare TypeError, when a builder or a runtime is made, into an EngineError with the reason."""
    try:
        yield
    except TypeError as error:  # 'factory function returned nullptr'
        raise EngineError(
            f"TensorRT cannot start: {in_words(errors)}",
            remedy="does the GPU's driver support the CUDA version of this TensorRT? `nvidia-smi` shows its version",
        ) from error


@contextmanager
def cuda_in_words() -> Iterator[None]:
    """Wrap torch's calls to the GPU: turn its RuntimeError (no memory, a lost device) into an EngineError."""
    try:
        yield
    except RuntimeError as error:
        first = str(error).partition("\n")[0]
        raise EngineError(f"CUDA failed: {first}", remedy="is the GPU's memory full? `nvidia-smi` shows it") from error


def deserialize(trt: Any, plan: bytes, *, host_code: bool = False, dla_core: int | None = None) -> Loaded:
    """Deserialize a plan into an engine. This runs native code of the plan: check its origin first.

    Args:
        trt: the module ``tensorrt``.
        host_code: also run code for the CPU, which version-compatible plans carry.
        dla_core: the DLA core that it was built for.

    Raises:
        EngineError: TensorRT cannot start or rejects the plan; the message is TensorRT's own.
    """
    errors: list[str] = []
    logger = make_logger(trt, errors)
    with starting(errors):
        runtime = trt.Runtime(logger)
    if host_code:
        runtime.engine_host_code_allowed = True
    if dla_core is not None:
        runtime.DLA_core = dla_core
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            f"TensorRT {trt.__version__} rejects the plan: {in_words(errors)}",
            remedy="build it on this machine with `python -m compress build`",
        )
    return Loaded(engine, runtime, logger, errors)
