"""Calls into TensorRT's native library: its messages, its failures to start, and the loading of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

from compress.errors import EngineError

_DRIVER = "does the GPU's driver support the CUDA version of this TensorRT? `nvidia-smi` shows its version"


class Loaded(NamedTuple):
    """A deserialized engine and the objects that it needs to live."""

    engine: Any
    runtime: Any
    logger: Any


@cache
def logger_of(trt: Any) -> Any:
    """The logger of this process, whose ``errors`` are the error messages since they were last cleared.

    TensorRT keeps the logger that it is given first, and ignores those of later builders and runtimes.
    """

    class Keeper(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(msg)

    return Keeper()


def in_words(errors: Sequence[str]) -> str:
    """The errors that TensorRT logged, on one line."""
    return "; ".join(" ".join(error.split()) for error in errors) or "it gave no reason"


@contextmanager
def starting(logger: Any) -> Iterator[None]:
    """Turn the bindings' bare TypeError, when a builder or a runtime is made, into an EngineError with the reason."""
    logger.errors.clear()
    try:
        yield
    except TypeError as error:  # 'factory function returned nullptr'
        raise EngineError(
            f"TensorRT cannot start: {in_words(logger.errors)}",
            remedy=_DRIVER,
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
        trt: the module of the bindings.
        host_code: also run code for the CPU, which version-compatible plans carry.
        dla_core: the DLA core that it was built for.

    Raises:
        EngineError: TensorRT cannot start or rejects the plan; the message is TensorRT's own.
    """
    logger = logger_of(trt)
    with starting(logger):
        runtime = trt.Runtime(logger)
    if host_code:
        runtime.engine_host_code_allowed = True
    if dla_core is not None:
        runtime.DLA_core = dla_core
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        reasons = in_words(logger.errors)
        raise EngineError(
            f"TensorRT {trt.__version__} rejects the plan: {reasons}",
            remedy=_DRIVER if "driver" in reasons else "build it again with `python -m compress build`",
        )
    return Loaded(engine, runtime, logger)
