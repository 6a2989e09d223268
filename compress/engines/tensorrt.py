"""TensorRT 10 and 11 in one code path: build a plan from an exported file, and run it.

Networks are strongly typed on both: precision comes from the ONNX file, never from builder flags. A plan holds native
code and fits one TensorRT version and one kind of GPU, so its sidecar is checked before any of it is deserialized.
The package is imported when it is needed; the calls used here exist from 10.0 to 11.4 (tests/tensorrt holds them
against the real bindings).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from compress.config import TargetConfig
from compress.engines.base import Array, Closing, OpenOptions, TensorSpec, check_feeds, check_placement, metadata_of
from compress.engines.sidecar import read_sidecar, vouched, write_sidecar
from compress.errors import BackendAbsent, EngineError
from compress.progress import Progress
from compress.run import write_atomic

TIMING_CACHE = "tensorrt.timing"
_WORKSPACE_BYTES = 2 << 30
_LARGEST_BATCH = 32  # a plan takes at least batches up to this, so that accuracy need not be measured one by one


def require(device: str) -> None:
    """Raise BackendAbsent, naming all that is missing, unless TensorRT loads and an NVIDIA GPU is there."""
    missing = []
    try:
        if not hasattr(importlib.import_module("tensorrt"), "Builder"):  # any folder of that name would be imported
            missing.append("the Python package 'tensorrt'")
    except ModuleNotFoundError as error:
        missing.append(f"the Python package '{error.name}'")
    except ImportError as error:
        missing.append(f"its libraries ({error})")
    if not torch.cuda.is_available():
        missing.append("an NVIDIA GPU that torch can see")
    if missing:
        raise BackendAbsent(
            f"TensorRT cannot run here: missing {' and '.join(missing)}",
            remedy="on a machine with an NVIDIA GPU: `pip install tensorrt` (on a Jetson it comes with JetPack); "
            "or use `--engine onnxruntime`",
        )
    if device != "cuda":
        raise EngineError(f"TensorRT runs on a GPU, not on '{device}'", remedy="use `--device cuda`")


def open_engine(path: Path, options: OpenOptions) -> TensorRTEngine:
    """Deserialize a plan whose sidecar vouches for it.

    Raises:
        EngineError: the sidecar is missing or does not match (unless ``options.trust``), or TensorRT refuses the plan.
        BackendAbsent: TensorRT or a GPU is not on this machine.
    """
    require(options.device)
    return TensorRTEngine(path, options)


def build(onnx_path: Path, out_dir: Path, target: TargetConfig, progress: Progress) -> Path:
    """Build ``<name>.plan`` with its sidecar; the timing cache beside it makes the next build fast.

    Raises:
        EngineError: TensorRT cannot read the file or build it; the message carries TensorRT's own.
    """
    require(target.device)
    trt = importlib.import_module("tensorrt")
    exported = onnx.load(onnx_path)
    metadata = metadata_of({entry.key: entry.value for entry in exported.metadata_props})
    check_placement("tensorrt", metadata, onnx_path)
    errors: list[str] = []
    logger = make_logger(trt, errors)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(exported.SerializeToString()):
        problems = [parser.get_error(index) for index in range(parser.num_errors)]
        raise EngineError(f"TensorRT cannot read {onnx_path}: {'; '.join(_in_words(problem) for problem in problems)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {tensor.name: shape_range(tuple(tensor.shape), target.batch) for tensor in tensors}
    for name, (least, best, most) in shapes.items():
        profile.set_shape(name, least, best, most)
    config.add_optimization_profile(profile)
    timings = out_dir / TIMING_CACHE
    _use_timings(config, timings)
    progress.note(f"TensorRT {trt.__version__} is building {onnx_path.name}; the first build takes minutes")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"TensorRT cannot build {onnx_path}: {'; '.join(errors) or 'it gave no reason'}")
    engine = out_dir / f"{onnx_path.stem}.plan"
    write_atomic(engine, bytes(plan))
    cache = config.get_timing_cache()
    if cache is not None:
        write_atomic(timings, bytes(cache.serialize()))
    write_sidecar(
        engine,
        onnx_path,
        metadata,
        engine="tensorrt",
        version=trt.__version__,
        device=torch.cuda.get_device_name(),
        threads=target.threads,
        batch=target.batch,
        shapes={name: [list(shape) for shape in triple] for name, triple in shapes.items()},
    )
    return engine


class TensorRTEngine(Closing):
    """A deserialized plan with its device buffers; see ``compress.engines.base.Engine``."""

    name = "tensorrt"
    requested = "TensorRT"
    provider = "TensorRT"

    def __init__(self, path: Path, options: OpenOptions) -> None:
        trt = importlib.import_module("tensorrt")
        if options.trust:
            record = read_sidecar(path)
        else:
            record = vouched(path, version=trt.__version__, device=torch.cuda.get_device_name())
        self.metadata = None if record is None else metadata_of(record.metadata)
        self.version: str = trt.__version__
        self.modes: Mapping[str, str | int | bool] = {"cuda_graph": False, "transfers": True, "streams": 1}
        errors: list[str] = []
        self._logger = make_logger(trt, errors)  # must outlive the runtime, and the runtime the engine
        self._runtime = runtime = trt.Runtime(self._logger)
        self._engine = engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise EngineError(
                f"TensorRT {trt.__version__} cannot load {path}: {'; '.join(errors) or 'it gave no reason'}",
                remedy="build it on this machine with `python -m compress build`",
            )
        self._context = engine.create_execution_context()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._buffers: dict[str, torch.Tensor] = {}
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.inputs = tuple(_spec(trt, engine, name) for name in inputs)
        self.outputs = tuple(_spec(trt, engine, name) for name in names if name not in inputs)
        self.max_batch: int | None = engine.get_tensor_profile_shape(inputs[0], 0)[2][0]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        check_feeds(self.inputs, feeds)
        context = self._context
        with torch.cuda.stream(self._stream):
            for spec in self.inputs:
                array = np.ascontiguousarray(feeds[spec.name])
                if not context.set_input_shape(spec.name, array.shape):
                    raise EngineError(f"input '{spec.name}' is {array.shape}, outside of what the plan was built for")
                self._buffer(spec, array.shape).copy_(torch.from_numpy(array), non_blocking=True)
            outputs = [self._buffer(spec, tuple(context.get_tensor_shape(spec.name))) for spec in self.outputs]
            if not context.execute_async_v3(self._stream.cuda_stream):
                raise EngineError("TensorRT failed to run the plan; its messages above say why")
            # .cpu() waits for the stream: run() returns when the outputs are really there
            return {spec.name: output.cpu().numpy() for spec, output in zip(self.outputs, outputs, strict=True)}

    def _buffer(self, spec: TensorSpec, shape: tuple[int, ...]) -> torch.Tensor:
        """The device memory of one tensor, made anew when the shape changes."""
        buffer = self._buffers.get(spec.name)
        if buffer is None or tuple(buffer.shape) != shape:
            dtype = torch.from_numpy(np.empty(0, spec.dtype)).dtype
            buffer = self._buffers[spec.name] = torch.empty(shape, dtype=dtype, device="cuda")
            context = self._context
            context.set_tensor_address(spec.name, buffer.data_ptr())
        return buffer

    def close(self) -> None:
        self._buffers.clear()
        self._context = self._engine = self._runtime = None


def make_logger(trt: Any, errors: list[str]) -> Any:
    """A TensorRT logger that keeps the error messages, so that an exception can say them."""

    class Keeper(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                errors.append(message)

    return Keeper()


def shape_range(shape: tuple[int, ...], batch: int) -> list[tuple[int, ...]]:
    """Least, best and most shape of an input whose first dimension may be dynamic (-1).

    >>> shape_range((-1, 3, 224, 224), batch=1)
    [(1, 3, 224, 224), (1, 3, 224, 224), (32, 3, 224, 224)]

    Raises:
        EngineError: another dimension is dynamic, or the batch is fixed to another number.
    """
    first, rest = shape[0], tuple(shape[1:])
    if -1 in rest:
        raise EngineError(f"only the batch may be dynamic, the input is {shape}")
    if first == -1:
        return [(size, *rest) for size in (1, batch, max(batch, _LARGEST_BATCH))]
    if first != batch:
        raise EngineError(f"the file is made for batches of {first}, not {batch}", remedy=f"use batch {first}")
    return [shape] * 3


def _use_timings(config: Any, path: Path) -> None:
    """Start from the kernel timings of an earlier build; from none where they are of another version or GPU."""
    cache = None
    with suppress(FileNotFoundError):
        cache = config.create_timing_cache(path.read_bytes())
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _in_words(problem: Any) -> str:
    where = f"node {problem.node()}" + (f" '{problem.node_name()}'" if problem.node_name() else "")
    return f"{where}: {problem.desc()} ({problem.code()})"


def _spec(trt: Any, engine: Any, name: str) -> TensorSpec:
    shape = tuple(None if dim == -1 else dim for dim in engine.get_tensor_shape(name))
    return TensorSpec(name, shape, np.dtype(trt.nptype(engine.get_tensor_dtype(name))))
