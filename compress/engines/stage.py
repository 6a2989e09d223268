"""Stage ``build``: the engine of the exported INT8 network for the configured target."""

from __future__ import annotations

import shutil
from pathlib import Path

from compress.config import Config, TargetConfig
from compress.engines.base import backend, build_engine
from compress.run import MANIFEST, Run


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
    target = retarget(config.target, engine)
    backend(target.engine).require(target.device)  # before anything is written
    exported = run.need("export") / f"{config.name}_int8.onnx"

    def work(out: Path, scratch: Path) -> None:
        for earlier in run.folder("build").glob("*"):  # the engine of another target, and TensorRT's timings
            if earlier.name != MANIFEST:
                shutil.copyfile(earlier, out / earlier.name)
        build_engine(target.engine, exported, out, target, progress=run.progress)

    return run.stage("build", work, settings=target.model_dump(), parents=[exported])


def retarget(target: TargetConfig, engine: str | None) -> TargetConfig:
    """The target with another engine, on the device that this engine is at home on.

    Raises:
        EngineError: an unknown engine.
    """
    if engine in (None, target.engine):
        return target
    backend(engine)  # an unknown name is an error that lists the known ones
    return target.model_copy(update={"engine": engine, "device": "cuda" if engine == "tensorrt" else "cpu"})
