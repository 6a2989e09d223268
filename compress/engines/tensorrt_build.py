"""Build a TensorRT plan from an exported file, and read from the plan which layers run in INT8."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
import torch

from compress.config import TargetConfig, TensorrtConfig
from compress.engines.base import check_placement, metadata_of
from compress.engines.sidecar import write_sidecar
from compress.engines.tensorrt_layers import Layers, read_layers
from compress.engines.tensorrt_runtime import deserialize, in_words, make_logger, require, starting
from compress.errors import EngineError
from compress.files import write_atomic
from compress.progress import Progress

TIMING_CACHE = "tensorrt.timing"
_LARGEST_BATCH = 32  # a plan takes batches up to at least this, so that accuracy is not measured image by image
_NAMED = 5  # how many layers a note names; the sidecar names all

Shapes = Mapping[str, tuple[tuple[int, ...], ...]]


def build(onnx_path: Path, out_dir: Path, target: TargetConfig, progress: Progress) -> Path:
    """Build ``<name>.plan`` with its sidecar; the timing cache beside it speeds up the next build.

    Raises:
        EngineError: TensorRT cannot read the file or build it (the message is TensorRT's own), or a convolution runs in
            FP32 that should run in INT8.
        BackendAbsent: TensorRT or a GPU is not on this machine.
    """
    require(target.device)
    trt = importlib.import_module("tensorrt")
    metadata = metadata_of({entry.key: entry.value for entry in onnx.load(onnx_path).metadata_props}, onnx_path)
    check_placement("tensorrt", metadata, onnx_path)
    engine, timings = out_dir / f"{onnx_path.stem}.plan", out_dir / TIMING_CACHE
    progress.note(f"TensorRT {trt.__version__} is building {engine.name}; the first build takes minutes")
    plan, shapes = build_plan(trt, onnx_path, target, timings, progress)
    layers = inspect(trt, plan, shapes, target.tensorrt)
    if metadata is not None and metadata.precision == "int8":
        check_int8(layers, onnx_path.name)
    for line in told(layers):
        progress.note(line)
    write_atomic(engine, plan)
    write_sidecar(
        engine,
        onnx_path,
        metadata,
        engine="tensorrt",
        version=trt.__version__,
        device=torch.cuda.get_device_name(),
        threads=target.threads,
        batch=target.batch,
        shapes=shapes,
        layers=layers.to_json(),
        options=target.tensorrt.model_dump(),
    )
    return engine


def build_plan(
    trt: Any, onnx_path: Path, target: TargetConfig, timings: Path, progress: Progress
) -> tuple[bytes, Shapes]:
    """Parse an ONNX file and build a plan from it.

    Args:
        trt: the module ``tensorrt``.
        timings: the timing cache: read if it exists, written when the build is done.

    Returns:
        the plan, and the least, best and most shape of each input.

    Raises:
        EngineError: TensorRT cannot start, read the file or build it.
    """
    errors: list[str] = []
    logger = make_logger(trt, errors)
    with starting(errors):
        builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_path.read_bytes()):
        problems = [parser.get_error(index) for index in range(parser.num_errors)]
        raise EngineError(
            f"TensorRT cannot read {onnx_path}: {'; '.join(_problem_in_words(problem) for problem in problems)}"
        )
    config = builder.create_builder_config()
    _configure(trt, builder, config, target.tensorrt)
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {tensor.name: shape_range(tuple(tensor.shape), target.batch) for tensor in tensors}
    profile = builder.create_optimization_profile()
    for name, (least, best, most) in shapes.items():
        profile.set_shape(name, least, best, most)
    config.add_optimization_profile(profile)
    _use_timings(config, timings)
    monitor = make_monitor(trt, progress)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor.stopped:
        raise KeyboardInterrupt
    if plan is None:
        raise EngineError(f"TensorRT cannot build {onnx_path}: {in_words(errors)}")
    cache = config.get_timing_cache()
    if cache is not None:
        write_atomic(timings, bytes(cache.serialize()))
    return bytes(plan), shapes


def _configure(trt: Any, builder: Any, config: Any, settings: TensorrtConfig) -> None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mb << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the inspector reports types
    config.builder_optimization_level = settings.optimization_level
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if settings.dla_core is not None:
        cores = builder.num_DLA_cores
        if settings.dla_core >= cores:
            raise EngineError(
                f"there is no DLA core {settings.dla_core}: TensorRT {trt.__version__} sees {cores} on this machine",
                remedy="leave target.tensorrt.dla_core out to run on the GPU",
            )
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = settings.dla_core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _use_timings(config: Any, path: Path) -> None:
    """Use the kernel timings of an earlier build, unless they are of another version or GPU."""
    cache = None
    with suppress(FileNotFoundError):
        cache = config.create_timing_cache(path.read_bytes())
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)


def make_monitor(trt: Any, progress: Progress) -> Any:
    """A TensorRT progress monitor that shows the outermost phase step by step; Ctrl-C sets ``stopped``."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped = False
            self._phase: str | None = None
            self._steps: Iterator[int] = iter(())

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if self._phase is None:
                self._phase = phase_name
                self._steps = iter(progress.track(range(num_steps), phase_name, num_steps))
                next(self._steps, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                if phase_name == self._phase:
                    next(self._steps, None)
            except KeyboardInterrupt:  # must not pass through TensorRT; returning False ends the build
                self.stopped = True
            return not self.stopped

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self._phase:
                for _ in self._steps:  # closes the bar
                    pass
                self._phase = None

    return Monitor()


def inspect(trt: Any, plan: bytes, shapes: Shapes, settings: TensorrtConfig) -> Layers:
    """The precision of the layers of a plan, as TensorRT's engine inspector reports it."""
    loaded = deserialize(trt, plan, host_code=settings.version_compatible, dla_core=settings.dla_core)
    engine = loaded.engine
    context = engine.create_execution_context()
    for name, (_, best, _) in shapes.items():
        context.set_input_shape(name, best)
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context  # without shapes it reports 'N/A due to dynamic shapes' instead of types
    return read_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def check_int8(layers: Layers, name: str) -> None:
    """Raise EngineError if a plan that should run in INT8 convolves in FP32, or runs nothing in INT8."""
    if layers.float_convolutions:
        first = layers.float_convolutions[0]
        raise EngineError(
            f"{name} should run in INT8, but {len(layers.float_convolutions)} layer(s) multiply by weights in FP32, "
            f"first '{first}': layers that are not quantized must be FP16",
            remedy="quantize and export again with `--set target.name=tensorrt`",
        )
    if not layers.int8 and not layers.unknown:
        raise EngineError(
            f"{name} should run in INT8, but no layer of the plan does",
            remedy="quantize and export again with `--set target.name=tensorrt`",
        )


def told(layers: Layers) -> Iterator[str]:
    """The lines that report a plan to the user: a count per precision, and the names of layers that are not INT8."""
    yield f"plan: {layers}"
    for kind, names in (("FP32", layers.fp32), ("FP16", layers.fp16)):
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            yield f"  still {kind}: {', '.join(names[:_NAMED])}{more}"


def shape_range(shape: tuple[int, ...], batch: int) -> tuple[tuple[int, ...], ...]:
    """Least, best and most shape of an input whose first dimension may be dynamic (-1).

    >>> shape_range((-1, 3, 224, 224), batch=1)
    ((1, 3, 224, 224), (1, 3, 224, 224), (32, 3, 224, 224))

    Raises:
        EngineError: another dimension is dynamic, or the batch is fixed to another number.
    """
    first, rest = shape[0], tuple(shape[1:])
    if -1 in rest:
        raise EngineError(f"only the batch may be dynamic, but the input is {shape}")
    if first == -1:
        return tuple((size, *rest) for size in (1, batch, max(batch, _LARGEST_BATCH)))
    if first != batch:
        raise EngineError(f"the file is made for batches of {first}, not {batch}", remedy=f"use batch {first}")
    return (shape,) * 3


def _problem_in_words(problem: Any) -> str:
    where = f"node {problem.node()}" + (f" '{problem.node_name()}'" if problem.node_name() else "")
    return f"{where}: {problem.desc()} ({problem.code()})"
