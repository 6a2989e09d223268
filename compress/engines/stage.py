"""Stage ``build``: build the engine of the exported INT8 network for the configured target."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from compress.config import Config, TargetConfig
from compress.engines.auto import AUTO, build_fastest, candidates
from compress.engines.base import backend, build_engine, check_machine, engine_files, require_builder, version_of
from compress.engines.sidecar import sidecar_path, vouched
from compress.errors import PipelineError
from compress.files import file_sha256
from compress.lead import lead_stage
from compress.registries import BACKENDS
from compress.run import Run
from compress.targets import default_target, names


def build(config: Config, run: Run, *, engine: str | None = None) -> Path:
    """Build ``<run>/build/<name>_int8.<suffix>`` with its sidecar from ``<run>/export/<name>_int8.onnx``.

    Args:
        engine: build for this engine instead of the configured one; ``auto``: for the fastest of the installed engines
            that run the file in INT8 (``auto.json`` holds the measurements).

    Returns:
        the stage's folder.

    Raises:
        BackendAbsent: the engine's runtime, or the device or processor that it needs, is not on this machine.
        PipelineError: stage ``export`` has not run.
        EngineError: the engine cannot be built, or would not run in INT8.
    """
    target = retarget(config.target, engine)
    if engine == AUTO:
        engines = candidates(target, run.progress)
    else:
        engines = (target.engine,)
        require_builder(target.engine, target.device)  # before anything is written
        check_machine(target.name)
    exported = run.need("export") / f"{config.name}_int8.onnx"

    def work(out: Path, scratch: Path) -> None:
        earlier = run.folder("build")
        kept = list(earlier.glob("*.timing"))  # the timing cache of TensorRT
        if engine != AUTO:  # with AUTO only the fastest engine is kept
            kept += _engines(earlier, exported)
        for file in kept:
            shutil.copyfile(file, out / file.name)
        if engine == AUTO:
            build_fastest(engines, exported, out, target, run.progress)
        else:
            build_engine(target.engine, exported, out, target, progress=run.progress)

    runtimes = {name: version_of(name) for name in engines}
    settings = {**target.model_dump(), "engine": engine or target.engine, "runtimes": runtimes}
    return lead_stage(run, "build", work, settings=settings, parents=[exported])


def _engines(folder: Path, exported: Path) -> list[Path]:
    """The engine files in a folder that were built from the current ``exported``."""
    parent = file_sha256(exported)
    found: list[Path] = []
    for engine in (path for known in BACKENDS.values() for path in folder.glob(f"*{known.suffix}")):
        with suppress(PipelineError, FileNotFoundError):  # no sidecar, a damaged one, another parent, or lost weights
            vouched(engine, parent_sha256=parent)
            found += [*engine_files(engine), sidecar_path(engine)]
    return found


def retarget(target: TargetConfig, engine: str | None) -> TargetConfig:
    """The target with another engine, on that engine's usual device; ``auto`` leaves the target as it is.

    Args:
        engine: its name, or that of another target.

    Raises:
        EngineError: the name is unknown.
    """
    if engine in (None, AUTO, target.engine):
        return target
    if engine in names() and engine not in BACKENDS:
        return TargetConfig.model_validate({"name": engine, "threads": target.threads, "batch": target.batch})
    backend(engine)  # raises for an unknown name, and lists the known ones
    name = target.name if engine in target.profile.engines else default_target(engine)
    kept = {key: getattr(target, key) for key in ("threads", "batch", "tensorrt", "tensorrt_rtx")}
    return TargetConfig.model_validate({"name": name, "engine": engine, **kept})
