"""Build a TensorRT plan from an exported file, and check that what should run in INT8 does."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from compress.config import TargetConfig, TensorrtConfig
from compress.engines.base import check_placement, metadata_of
from compress.engines.metadata import Metadata
from compress.engines.sidecar import write_sidecar
from compress.engines.tensorrt.layers import Layers, read_layers
from compress.engines.tensorrt.native import deserialize
from compress.engines.tensorrt.network import Parsed
from compress.engines.tensorrt.plan import Shapes, build_plan, check_read
from compress.engines.tensorrt.worker import read_apart
from compress.errors import EngineError
from compress.files import write_atomic
from compress.progress import Progress
from compress.targets import profile as profile_of

if TYPE_CHECKING:
    from compress.engines.tensorrt.edition import Edition

_NAMED = 5  # how many layers a note names; the sidecar names all


def build(edition: Edition, onnx_path: Path, out_dir: Path, target: TargetConfig, progress: Progress) -> Path:
    """Build ``<name>.plan`` with its sidecar.

    Raises:
        EngineError: TensorRT cannot read the file or build it (the message is TensorRT's own), or a layer does not run
            in INT8 that should.
        BackendAbsent: TensorRT, or the GPU that it needs to build, is not on this machine.
    """
    edition.require_builder(target.device)
    trt, metadata = edition.module(), _metadata(onnx_path)
    check_placement(edition.name, metadata, onnx_path)
    engine = out_dir / f"{onnx_path.stem}.plan"
    progress.note(
        f"{edition.title} {trt.__version__} is building {engine.name} for {edition.device(target)}"
        + ("" if edition.builds_without_gpu else "; the first build takes minutes")
    )
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / "plan"
        parsed, shapes = read_apart(edition, onnx_path, target, built)
        check_read(edition, onnx_path, parsed.refused)
        if metadata is not None and metadata.precision == "int8":
            check_typed(parsed, onnx_path, metadata)
        plan = built.read_bytes() if built.exists() else None
    layers: dict[str, Any] = parsed.counts()
    progress.note(f"plan: {parsed}")
    if plan is None:  # TensorRT 10 and 11 build here, for minutes, with progress; and say what they have chosen
        plan, shapes = build_plan(edition, trt, onnx_path, target, out_dir, progress)
        chosen = inspect(trt, plan, shapes, target.tensorrt)
        if metadata is not None and metadata.precision == "int8":
            check_int8(chosen, onnx_path.name)
        for line in told(chosen):
            progress.note(line)
        layers |= chosen.to_json()
    write_atomic(engine, plan)
    write_sidecar(
        engine,
        onnx_path,
        metadata,
        engine=edition.name,
        version=trt.__version__,
        device=edition.device(target),
        threads=target.threads,
        batch=target.batch,
        shapes=shapes,
        layers=layers,
        options=edition.options(target),
    )
    return engine


def _metadata(path: Path) -> Metadata | None:
    try:
        props = onnx.load(path, load_external_data=False).metadata_props
    except DecodeError as error:
        raise EngineError(f"{path} is not a whole ONNX file: {error}", remedy="copy or export it again") from None
    return metadata_of({entry.key: entry.value for entry in props}, path)


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


def check_typed(parsed: Parsed, path: Path, metadata: Metadata) -> None:
    """Raise EngineError if a layer of a file that should run in INT8 is typed otherwise; see ``network.Fault``."""
    graph = onnx.load(path, load_external_data=False).graph
    faults = parsed.unintended(graph, metadata.float_layers, profile_of(metadata.target).keep_float)
    if faults:
        first = faults[0]
        raise EngineError(
            f"{path.name} should run in INT8, but for {len(faults)} layer(s) it does not say so, "
            f"first '{first.node}': {first.message}",
            remedy=f"run `python -m compress lint {path}` for details",
        )


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
