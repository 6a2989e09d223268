"""TensorRT 10 and 11: builds on the GPU that the plan is for, by timing kernels on it."""

from __future__ import annotations

import importlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.engines.sidecar import Sidecar, vouched
from compress.engines.tensorrt.edition import Edition
from compress.errors import EngineError
from compress.files import write_atomic

if TYPE_CHECKING:
    from compress.config import TargetConfig

TIMING_CACHE = "tensorrt.timing"


class TensorRT(Edition):
    """The edition of data centres and Jetson."""

    name, title = "tensorrt", "TensorRT"
    install = "`pip install tensorrt` (on a Jetson it comes with JetPack)"
    place = (
        "build and run on a machine with an NVIDIA GPU; or use `--target tensorrt-rtx`, which builds without one, or "
        "`--target onnxruntime`"
    )

    def load(self) -> Any:
        return importlib.import_module("tensorrt")

    def configure(self, trt: Any, builder: Any, config: Any, target: TargetConfig) -> None:
        settings = target.tensorrt
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mb << 20)
        config.builder_optimization_level = settings.optimization_level
        if settings.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if settings.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if settings.dla_core is not None:
            cores = builder.num_DLA_cores
            if settings.dla_core >= cores:
                raise EngineError(
                    f"there is no DLA core {settings.dla_core}: TensorRT {trt.__version__} sees {cores} here",
                    remedy="leave target.tensorrt.dla_core out to run on the GPU",
                )
            config.default_device_type = trt.DeviceType.DLA
            config.DLA_core = settings.dla_core
            config.set_flag(trt.BuilderFlag.GPU_FALLBACK)

    def before_build(self, config: Any, folder: Path) -> None:
        """Use the kernel timings of an earlier build, unless they are of another version or GPU."""
        cache = None
        with suppress(FileNotFoundError):
            cache = config.create_timing_cache((folder / TIMING_CACHE).read_bytes())
        if cache is None or not config.set_timing_cache(cache, False):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)

    def after_build(self, config: Any, folder: Path) -> None:
        cache = config.get_timing_cache()
        if cache is not None:
            write_atomic(folder / TIMING_CACHE, bytes(cache.serialize()))

    def options(self, target: TargetConfig) -> dict[str, Any]:
        return target.tensorrt.model_dump()

    def device(self, target: TargetConfig) -> str:
        import torch

        return torch.cuda.get_device_name()

    def vouch(self, path: Path) -> Sidecar:
        import torch

        return vouched(path, engine=self.name, version=self.version(), device=torch.cuda.get_device_name())

    def context(self, trt: Any, engine: Any, path: Path) -> Any:
        return engine.create_execution_context()


TENSORRT = TensorRT()
