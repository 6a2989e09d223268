"""Stage ``build``: the engine of the exported INT8 network for the configured target."""

from __future__ import annotations

import shutil
from pathlib import Path

from compress.config import Config, TargetConfig
from compress.engines.base import backend, build_engine
from compress.engines.tensorrt import TIMING_CACHE
from compress.run import Run


def build(config: Config, run: Run, *, engine: str | None = None) -> Path:
    """Build ``<run>/build/<name>_int8.<suffix>`` with its sidecar from ``<run>/export/<name>_int8.onnx``.

    Args:
        engine: build for this engine instead of the configured one.

    Returns:
        the stage's folder.

    Raises:
        BackendAbsent: the engine's runtime, or the device that it needs, is not on this machine.
        PipelineError: stage ``export`` has not run.
        EngineError: the engine could not be built, or would not run in INT8.
    """
    target = _target(config.target, engine)
    backend(target.engine).require(target.device)  # before anything is written
    exported = run.need("export") / f"{config.name}_int8.onnx"

    def work(out: Path, scratch: Path) -> None:
        timings = run.folder("build") / TIMING_CACHE
        if timings.exists():
            shutil.copyfile(timings, out / TIMING_CACHE)
        build_engine(target.engine, exported, out, target, progress=run.progress)

    return run.stage("build", work, settings=target.model_dump(), parents=[exported])


def _target(target: TargetConfig, engine: str | None) -> TargetConfig:
    if engine in (None, target.engine):
        return target
    backend(engine)  # an unknown name is an error that lists the known ones
    return target.model_copy(update={"engine": engine, "device": "cuda" if engine == "tensorrt" else "cpu"})
