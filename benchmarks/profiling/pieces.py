"""Write the file of each piece as the engine's script opens it: an ONNX file, or a plan that is compiled here."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from benchmarks.profiling.guest import ENGINES
from benchmarks.profiling.survey import Piece
from compress.config import TargetConfig, TensorrtRtxConfig
from compress.engines.base import backend
from compress.engines.tensorrt.edition import Edition
from compress.engines.tensorrt.plan import build_plan
from compress.errors import ConfigError, EngineError
from compress.files import write_atomic
from compress.probes.template import Template
from compress.progress import SILENT


@dataclass(frozen=True)
class Built:
    """What plans need that were compiled where the kit was made.

    Attributes:
        version: of the runtime.
        capabilities: compute capabilities of the GPUs.
    """

    version: str
    capabilities: tuple[str, ...]

    @classmethod
    def of(cls, target: TargetConfig) -> Built | None:
        """What the plans of a target need; None if its script opens ONNX files."""
        compiler = compiler_of(target)
        return None if compiler is None else cls(compiler.version(), target.tensorrt_rtx.capabilities)


def check_pieces(target: TargetConfig) -> None:
    """Check that the pieces of a target can be written on this machine.

    Raises:
        ConfigError: no script times them.
        BackendAbsent: they are plans, and what compiles them is not on this machine.
    """
    if target.engine not in ENGINES:
        raise ConfigError(
            f"a latency table cannot be measured on engine '{target.engine}': only on {', '.join(ENGINES)}",
            remedy="prune to prune.macs, prune.params or prune.ratio",
        )
    if (compiler := compiler_of(target)) is not None:
        compiler.require_builder(target.device)


def compiler_of(target: TargetConfig) -> Edition | None:
    """What compiles a target's plans for GPUs that are elsewhere; None if its script opens ONNX files."""
    found = backend(target.engine)
    return found if isinstance(found, Edition) and found.builds_without_gpu else None


def for_this_gpu(target: TargetConfig) -> TargetConfig:
    """A target whose plans are compiled for the GPU of this machine, where their pieces are timed."""
    if compiler_of(target) is None:
        return target
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    try:
        settings = TensorrtRtxConfig.model_validate({"capabilities": [capability]})
    except ValidationError:
        raise EngineError(f"no plan can be compiled for this GPU, whose compute capability is {capability}") from None
    return target.model_copy(update={"tensorrt_rtx": settings})


def write_pieces(
    folder: Path, pieces: Iterable[Piece], build: Callable[[Piece], Template], target: TargetConfig
) -> None:
    """Write the file of each piece.

    Raises:
        EngineError: a plan cannot be compiled.
    """
    compiler = compiler_of(target)
    for piece in pieces:
        model = build(piece).to_onnx().SerializeToString()
        name = f"{piece.name}{ENGINES[target.engine].suffix}"
        write_atomic(folder / name, model if compiler is None else _compiled(compiler, model, piece.name, target))


def _compiled(compiler: Edition, model: bytes, name: str, target: TargetConfig) -> bytes:
    """The plan of an ONNX file; the names of files and folders are in the compiler's messages only."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"{name}.onnx"
        path.write_bytes(model)
        plan, _ = build_plan(compiler, compiler.module(), path, target, Path(scratch), SILENT)
    return plan
