"""TensorRT for RTX: compiles a plan on any machine for the GPUs that are chosen; each GPU finishes it when it loads it.

The bindings and the libraries are two packages. The official package of the libraries comes from NVIDIA's index; the
public index carries them in ONNX Runtime's plug-in for TensorRT for RTX. Either will do.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.engines.sidecar import Sidecar, vouched
from compress.engines.tensorrt.edition import Edition
from compress.errors import EngineError
from compress.files import write_atomic

if TYPE_CHECKING:
    from compress.config import TargetConfig

_BINDINGS, _OFFICIAL = "tensorrt_rtx_bindings", "tensorrt_rtx"
_LIBRARIES = ("tensorrt_rtx_libs", "onnxruntime_ep_nv_tensorrt_rtx")  # packages that carry them
_NAMES = ("libtensorrt_rtx.so.", "libtensorrt_onnxparser_rtx.so.")  # the second needs the first


class TensorRTForRTX(Edition):
    """The edition of RTX graphics cards, from Turing on."""

    name, title = "tensorrt-rtx", "TensorRT for RTX"
    install = (
        "`pip install tensorrt_rtx_cu13_bindings==1.7.1.116 onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0` (Linux on x86)"
    )
    place = "run it on a machine with an NVIDIA RTX GPU and its driver"
    builds_without_gpu = True

    def load(self) -> Any:
        if (official := importlib.util.find_spec(_OFFICIAL)) is not None and official.origin:  # not just a folder
            return importlib.import_module(_OFFICIAL)
        if importlib.util.find_spec(_BINDINGS) is None:
            raise ModuleNotFoundError(f"No module named '{_BINDINGS}'", name=_BINDINGS)
        library = _load_libraries()
        trt = importlib.import_module(_BINDINGS)
        if library != trt.__version__.split(".")[: len(library)]:  # they would crash one another
            raise ImportError(f"they have version {'.'.join(library)}, but {_BINDINGS} has {trt.__version__}")
        return trt

    def configure(self, trt: Any, builder: Any, config: Any, target: TargetConfig) -> None:
        members = trt.ComputeCapability.__members__
        config.num_compute_capabilities = len(target.tensorrt_rtx.capabilities)
        for index, capability in enumerate(target.tensorrt_rtx.capabilities):
            member = members.get(f"SM{capability.replace('.', '')}")
            if member is None or not config.set_compute_capability(member, index):
                raise EngineError(
                    f"{self.title} {trt.__version__} cannot build for compute capability {capability}",
                    remedy=f"it knows {', '.join(name for name in members if name.startswith('SM'))}",
                )

    def options(self, target: TargetConfig) -> dict[str, Any]:
        return target.tensorrt_rtx.model_dump(mode="json")

    def device(self, target: TargetConfig) -> str:
        return f"GPUs of compute capability {', '.join(target.tensorrt_rtx.capabilities)}"

    def vouch(self, path: Path) -> Sidecar:
        import torch

        record = vouched(path, engine=self.name, version=self.version())
        major, minor = torch.cuda.get_device_capability()
        built = record.options.get("capabilities")
        if not isinstance(built, list) or f"{major}.{minor}" not in built:
            raise EngineError(
                f"{path} was built for {record.device}; this GPU, {torch.cuda.get_device_name()}, has {major}.{minor}",
                remedy=f"build it again with `--set target.tensorrt_rtx.capabilities=['{major}.{minor}']`",
            )
        return record

    def context(self, trt: Any, engine: Any, path: Path) -> Any:
        """A context whose kernels are specialized for each shape before the first run on it, not beside later runs.

        Specialized in the background, which is the default, kernels would change while they are timed.
        """
        runtime_config = engine.create_runtime_config()
        runtime_config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        runtime_cache = runtime_config.create_runtime_cache()
        with suppress(OSError):
            runtime_cache.deserialize(cache_path(path).read_bytes())  # one of another GPU or version is not used
        runtime_config.set_runtime_cache(runtime_cache)
        return engine.create_execution_context(runtime_config)

    def after_run(self, context: Any, path: Path) -> None:
        """Keep the kernels that were compiled on this GPU, so that the plan loads fast the next time."""
        runtime_config = context.get_runtime_config()
        runtime_cache = runtime_config.get_runtime_cache()
        with suppress(OSError):  # the folder may be read-only
            write_atomic(cache_path(path), bytes(runtime_cache.serialize()))


RTX = TensorRTForRTX()


def cache_path(plan: Path) -> Path:
    """The runtime cache beside a plan.

    >>> cache_path(Path("build/resnet18_int8.plan")).name
    'resnet18_int8.plan.cache'
    """
    return plan.with_name(f"{plan.name}.cache")


def _load_libraries() -> list[str]:
    """Load the libraries of the first package that carries them, so that the bindings find them by their sonames.

    Returns:
        the version of the libraries: major, minor and patch.

    Raises:
        ModuleNotFoundError: no package does.
        OSError: a library cannot be loaded.
    """
    for package in _LIBRARIES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            files = [sorted(Path(folder).glob(f"{name}*")) for name in _NAMES]
            if all(files):
                library, _ = (ctypes.CDLL(str(found[-1]), mode=ctypes.RTLD_GLOBAL) for found in files)
                number = library.getInferLibVersion()  # 10701 is 1.7.1
                return [str(part) for part in (number // 10000, number // 100 % 100, number % 100)]
    raise ModuleNotFoundError("TensorRT for RTX's libraries are not installed", name=_LIBRARIES[-1])
