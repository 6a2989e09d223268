"""OpenVINO on the CPU: convert an exported file to .xml + .bin, run it, and check after a build that it runs in INT8.

The file is OpenVINO's own form of the exported network, before any optimization: it holds no native code and runs on
any processor. The model compiled on this machine is checked: a convolution in float that should run in INT8 is an
error. The package is optional and imported when it is needed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx

from compress.engines.base import (
    Array,
    Closing,
    OpenOptions,
    TensorSpec,
    check_feeds,
    check_placement,
    engine_files,
    metadata_of,
)
from compress.engines.convolutions import check_convolutions, unquantized
from compress.engines.metadata import Metadata
from compress.engines.sidecar import read_sidecar, vouched, write_sidecar
from compress.errors import BackendAbsent, EngineError
from compress.files import write_atomic
from compress.parse import brief
from compress.progress import Progress

if TYPE_CHECKING:  # this import would take half of a worker's startup time
    from compress.config import TargetConfig

_INTEGERS = ("i8", "u8")
_NOT_WORK = ("Const", "Input", "Output")


class Layer(NamedTuple):
    """A node of the compiled model: its type, the precision that it computes in, and the layers fused into it."""

    type: str
    precision: str
    origins: tuple[str, ...]


class OpenVinoEngine(Closing):
    """A network compiled for the CPU, with one inference request; see ``compress.engines.base.Engine``.

    Args:
        profile: time every node, which slows the runs.
    """

    name = "openvino"
    requested = "CPU"
    max_batch: int | None = None

    def __init__(self, path: Path, options: OpenOptions, *, profile: bool = False) -> None:
        require(options.device)
        if not options.trust and read_sidecar(path) is not None:
            vouched(path)  # the two files can be mixed up, and OpenVINO would run any weights that are long enough
        model = _read(path)
        self._path, self.metadata = path, _metadata(model, path)
        compiled = _compile(model, path, options, profile=profile)
        self.version: str = runtime().__version__
        self.provider: str = ",".join(compiled.get_property("EXECUTION_DEVICES"))
        if self.provider != self.requested:
            raise EngineError(f"{path} runs on {self.provider}, not on {self.requested}, which was requested")
        self.inputs = tuple(_spec(port) for port in compiled.inputs)
        self.outputs = tuple(_spec(port) for port in compiled.outputs)
        self.modes: Mapping[str, str | int | bool] = {
            "inference_threads": compiled.get_property("INFERENCE_NUM_THREADS"),
            "streams": compiled.get_property("NUM_STREAMS"),
            "hint": "latency",
            "pinning": compiled.get_property("ENABLE_CPU_PINNING"),
            "float_precision": compiled.get_property("INFERENCE_PRECISION_HINT").to_string(),
        }
        self._request = compiled.create_infer_request()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        check_feeds(self.inputs, feeds)
        try:
            results = self._request.infer(dict(feeds), share_inputs=True)  # outputs are copied: the request owns them
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed to run {self._path}: {_reason(error)}") from error
        return {spec.name: results[index] for index, spec in enumerate(self.outputs)}

    def profiling_info(self) -> list[Any]:
        """Each node's mean time over all runs so far (``openvino.ProfilingInfo``), if opened with ``profile``."""
        return list(self._request.get_profiling_info())

    def close(self) -> None:
        self._request = None  # the request holds the compiled model; there is no explicit release


def require(device: str) -> None:
    """Raise BackendAbsent if OpenVINO is not installed, and EngineError for another device than the CPU."""
    runtime()
    if device != "cpu":
        raise EngineError(f"the OpenVINO engine runs on the CPU, not on '{device}'", remedy="use `--device cpu`")


def open_engine(path: Path, options: OpenOptions) -> OpenVinoEngine:
    """Open an .xml file with the .bin beside it.

    Raises:
        EngineError: they cannot be loaded, or do not match their sidecar (unless ``options.trust``).
        BackendAbsent: OpenVINO is not installed.
    """
    return OpenVinoEngine(path, options)


def build(onnx_path: Path, out_dir: Path, target: TargetConfig, progress: Progress) -> Path:
    """Convert an exported file to ``<name>.xml`` and ``<name>.bin``, with a sidecar; check that it runs in INT8.

    Raises:
        EngineError: a convolution runs in float that should run in INT8, or one does not that should stay in float.
        BackendAbsent: OpenVINO is not installed, or the file is made for another processor.
    """
    require(target.device)
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / f"{onnx_path.stem}.xml"
        # By default OpenVINO would round the weights that are not quantized to float16.
        runtime().save_model(_read(onnx_path), converted, compress_to_fp16=False)
        model = _read(converted)
        metadata = _metadata(model, onnx_path)
        check_placement(OpenVinoEngine.name, metadata, onnx_path)
        layers = list(compiled_layers(_compile(model, onnx_path, OpenOptions(target.threads, target.device))))
        if metadata is not None and metadata.precision == "int8":
            check_convolutions(onnx_path, metadata, _floats(layers), _why)
        counts = layer_counts(layers)
        progress.note(f"compiled model: {', '.join(f'{count} {name}' for name, count in counts.items())}")
        for file in reversed(engine_files(converted)):  # weights first: no .xml without its weights
            write_atomic(out_dir / file.name, file.read_bytes())
    engine = out_dir / converted.name
    write_sidecar(
        engine,
        onnx_path,
        metadata,
        engine=OpenVinoEngine.name,
        version=runtime().__version__,
        device=target.device,
        threads=target.threads,
        batch=target.batch,
        operators=counts,
    )
    return engine


def compiled_layers(compiled: Any) -> Iterator[Layer]:
    """The layers that a compiled model (``openvino.CompiledModel``) really runs, in its order."""
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        names = facts["originalLayersNames"].astype(str)
        yield Layer(facts["layerType"].astype(str), facts["runtimePrecision"].astype(str), tuple(names.split(",")))


def layer_counts(layers: list[Layer]) -> dict[str, int]:
    """Count the layers by type and precision, most frequent first.

    >>> layer_counts([Layer("Convolution", "u8", ("a",)), Layer("Const", "f32", ("b",))])
    {'Convolution u8': 1}
    """
    work = (f"{layer.type} {layer.precision}" for layer in layers if layer.type not in _NOT_WORK)
    return dict(Counter(work).most_common())


def runtime() -> Any:
    """Import the package ``openvino`` without telemetry.

    Raises:
        BackendAbsent: it is not installed, or cannot be imported.
    """
    try:
        with without_telemetry():
            return importlib.import_module("openvino")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "openvino"
        raise BackendAbsent(
            f"OpenVINO {'is not installed' if missing else f'cannot be imported: {error}'}",
            remedy='`pip install --editable ".[openvino]"`, or use `--target onnxruntime`',
        ) from None


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """In the block, OpenVINO and NNCF, which imports it, can be imported without telemetry.

    Importing OpenVINO sends an event over the network and writes into the home folder, except in a CI job; NNCF reads
    a variable of its own. After the first import they stay silent, so the environment is restored afterwards.
    """
    before = {name: os.environ.get(name) for name in ("CI", "NNCF_CI")}
    os.environ.update(CI="true", NNCF_CI="1")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _read(path: Path) -> Any:
    try:
        return runtime().Core().read_model(path)
    except RuntimeError as error:
        raise EngineError(
            f"OpenVINO cannot load {path}: {_reason(error)}", remedy="is the file complete? build it again"
        ) from error


def _compile(model: Any, path: Path, options: OpenOptions, *, profile: bool = False) -> Any:
    settings = {
        "INFERENCE_NUM_THREADS": options.threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # On other processors the default may be bfloat16; float32 keeps the float layers comparable to other engines.
        "INFERENCE_PRECISION_HINT": "f32",
        # Threads pinned to a core would wait for other programs on that core; other engines do not pin threads either.
        "ENABLE_CPU_PINNING": False,
        "PERF_COUNT": profile,
    }
    try:
        return runtime().Core().compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot compile {path}: {_reason(error)}") from error


def _metadata(model: Any, path: Path) -> Metadata | None:
    """This package's properties; OpenVINO keeps those of an ONNX file under ``framework``, in the .xml too."""
    if not model.has_rt_info(["framework"]):
        return None
    props = model.get_rt_info(["framework"]).astype(dict)
    return metadata_of({key: str(value.value) for key, value in props.items()}, path)


def _spec(port: Any) -> TensorSpec:
    dims = tuple(None if dim.is_dynamic else dim.get_length() for dim in port.get_partial_shape())
    return TensorSpec(port.get_any_name(), dims, np.dtype(port.get_element_type().to_dtype()))


def _reason(error: RuntimeError) -> str:
    """The last line of the error: those before it give locations in OpenVINO's sources."""
    return brief(str(error).strip().rpartition("\n")[2].strip())


def _floats(layers: list[Layer]) -> list[list[str]]:
    """For each convolution in float, the layers that were fused into it; OpenVINO names them after nodes or outputs."""
    floats = [layer for layer in layers if layer.type == "Convolution" and layer.precision not in _INTEGERS]
    return [[name.removesuffix("/WithoutBiases") for name in layer.origins] for layer in floats]


def _why(conv: onnx.NodeProto, graph: onnx.GraphProto) -> str:
    """Explain what before a convolution keeps OpenVINO from computing it in integers."""
    return unquantized(conv, graph) or "it is quantized completely, but OpenVINO did not use its Q/DQ"
