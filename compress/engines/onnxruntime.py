"""ONNX Runtime: open an ONNX file as an engine, and check after a build that it runs in INT8.

The engine file is the exported file itself. The graph that ONNX Runtime optimizes at load time could be saved instead,
but that was measured to run no faster (ResNet-18 INT8, 224 pixels, one thread: 5.5 ms both) and to save only 3 ms of
loading, and it ties the file to one processor and one version. The optimized graph is checked all the same: its
operators are counted, and a convolution in float that should run in INT8 is an error.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort

from compress.engines.base import Array, Closing, OpenOptions, TensorSpec, check_feeds, check_placement, metadata_of
from compress.engines.convolutions import check_convolutions, unquantized
from compress.engines.metadata import Metadata
from compress.engines.sidecar import write_sidecar
from compress.errors import BackendAbsent, EngineError
from compress.files import write_atomic
from compress.parse import brief
from compress.progress import Progress
from compress.targets import profile

if TYPE_CHECKING:  # this import would take half of a worker's startup time
    from compress.config import TargetConfig

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_FLOAT_CONVS = ("Conv", "FusedConv", "NhwcFusedConv")
# With it ONNX Runtime 1.31 computes Q/DQ with float16 scales wrongly: measured on a ResNet-18 in ``export.parity``.
_WRONG_IN_FLOAT16 = ["WeightBiasQuantization"]
_ERRORS_ONLY = 3  # ONNX Runtime's log severity


class OnnxRuntimeEngine(Closing):
    """An ONNX file opened in one session; see ``compress.engines.base.Engine``.

    Args:
        profile: time every node, which slows the runs; the name of the profile's file begins with this path.
    """

    name = "onnxruntime"
    max_batch: int | None = None

    def __init__(self, path: Path, options: OpenOptions, profile: Path | None = None) -> None:
        require(options.device)
        self._path, self.requested = path, _PROVIDERS[options.device]
        settings = _settings(options)
        if profile is not None:
            settings.enable_profiling = True
            settings.profile_file_prefix = str(profile)
        self._session, self.metadata, without = _open(path, settings, self.requested)
        self.version: str = ort.__version__
        self.provider: str = self._session.get_providers()[0]
        if self.provider != self.requested:
            raise EngineError(
                f"{path} runs on {self.provider}, not on {self.requested}, which was requested",
                remedy="ONNX Runtime could not start that provider; its messages above say why",
            )
        self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node) for node in self._session.get_outputs())
        self.modes: Mapping[str, str | int | bool] = {
            "intra_op_threads": options.threads,
            "inter_op_threads": 1,
            "spinning": "while running" if options.threads > 1 else "none",
            "graph_optimization": " but ".join(["all", *without]),
        }

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        check_feeds(self.inputs, feeds)
        try:
            outputs = self._session.run(None, feeds)
        except Exception as error:  # the runtime's exceptions have no public base class
            raise EngineError(f"ONNX Runtime failed to run {self._path}: {_first_line(error)}") from error
        return {spec.name: array for spec, array in zip(self.outputs, outputs, strict=True)}

    def end_profiling(self) -> Path:
        """Stop profiling; return the file with the times of all nodes in all runs so far: trace events as JSON."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        self._session = None  # the session holds the memory and the threads; there is no explicit release


def require(device: str) -> None:
    """Raise BackendAbsent if this installation of ONNX Runtime cannot run on ``device``."""
    if _PROVIDERS[device] not in ort.get_available_providers():
        raise BackendAbsent(
            f"this ONNX Runtime ({ort.__version__}) has no {_PROVIDERS[device]}",
            remedy="install onnxruntime-gpu in place of onnxruntime, or use `--device cpu`",
        )


def open_engine(path: Path, options: OpenOptions) -> OnnxRuntimeEngine:
    """Open an ONNX file.

    Raises:
        EngineError: it cannot be loaded, or another provider than the requested one would run it.
        BackendAbsent: the provider is not in this installation.
    """
    return OnnxRuntimeEngine(path, options)


def build(onnx_path: Path, out_dir: Path, target: TargetConfig, progress: Progress) -> Path:
    """Check how ONNX Runtime runs an exported file, and put it with its sidecar into ``out_dir``.

    Raises:
        EngineError: a convolution runs in float that should run in INT8, or one does not that should stay in float.
        BackendAbsent: the file is made for another processor than this machine's.
    """
    options = OpenOptions(target.threads, target.device)
    with OnnxRuntimeEngine(onnx_path, options) as opened:
        metadata = opened.metadata
    check_placement(OnnxRuntimeEngine.name, metadata, onnx_path)
    optimized = optimized_graph(onnx_path, options)
    if metadata is not None and metadata.precision == "int8":
        check_convolutions(onnx_path, metadata, float_convolutions(optimized), _why)
    counts = operator_counts(optimized)
    progress.note(f"optimized graph: {', '.join(f'{count} {name}' for name, count in counts.items())}")
    engine = out_dir / onnx_path.name
    write_atomic(engine, onnx_path.read_bytes())
    write_sidecar(
        engine,
        onnx_path,
        metadata,
        engine=OnnxRuntimeEngine.name,
        version=ort.__version__,
        device=target.device,
        threads=target.threads,
        batch=target.batch,
        operators=counts,
    )
    return engine


def optimized_graph(path: Path, options: OpenOptions = OpenOptions()) -> onnx.GraphProto:  # noqa: B008 (immutable)
    """The graph that ONNX Runtime really runs: that of the file after all optimizations on this machine."""
    settings = _settings(options)
    settings.log_severity_level = _ERRORS_ONLY  # it warns that the saved graph only fits this machine; it is not kept
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "optimized.onnx"
        settings.optimized_model_filepath = str(saved)
        _open(path, settings, _PROVIDERS[options.device])
        return onnx.load(saved, load_external_data=False).graph


def operator_counts(graph: onnx.GraphProto) -> dict[str, int]:
    """Count the operators of a graph, most frequent first.

    Returns:
        ``{"QLinearConv": 20, "QLinearAdd": 8, ...}``
    """
    return dict(Counter(node.op_type for node in graph.node).most_common())


def float_convolutions(optimized: onnx.GraphProto) -> list[tuple[str, str]]:
    """The names of each convolution in float; the layout optimizer names its nodes after their outputs."""
    names = [node.name for node in optimized.node if node.op_type in _FLOAT_CONVS]
    return [(name, name.removesuffix("_nchwc")) for name in names]


def _settings(options: OpenOptions) -> Any:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3  # else it warns of each constant that it cannot fold in float16
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Idle threads that spin slow down every other process: measured at two threads, an idle session uses 7% of a
    # core. Spinning only during a run costs no time (3.0 ms both) and leaves the machine quiet between runs.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1")
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    return settings


def _open(path: Path, settings: Any, provider: str) -> tuple[Any, Metadata | None, list[str]]:
    """Start a session.

    Returns:
        the session, the file's metadata, and the names of the optimizers that are switched off.
    """
    session = _session(path, settings, provider)
    metadata = metadata_of(session.get_modelmeta().custom_metadata_map, path)
    if metadata is None or not metadata.target or profile(metadata.target).float_type == "float32":
        return session, metadata, []
    # The metadata can only be read from a session, so such a file is loaded twice.
    return _session(path, settings, provider, _WRONG_IN_FLOAT16), metadata, _WRONG_IN_FLOAT16


def _session(path: Path, settings: Any, provider: str, without: Sequence[str] = ()) -> Any:
    try:
        return ort.InferenceSession(str(path), settings, providers=[provider], disabled_optimizers=without)
    except Exception as error:  # the runtime's exceptions have no public base class
        raise EngineError(
            f"ONNX Runtime cannot load {path}: {_first_line(error)}", remedy="is the file complete? export it again"
        ) from error


def _spec(node: Any) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    dtype = np.dtype({"float": "float32", "double": "float64"}.get(kind, kind))
    return TensorSpec(node.name, tuple(dim if isinstance(dim, int) else None for dim in node.shape), dtype)


def _first_line(error: Exception) -> str:
    return brief(str(error).strip().partition("\n")[0])


def _why(conv: onnx.NodeProto, exported: onnx.GraphProto) -> str:
    """Explain what around a convolution keeps ONNX Runtime from fusing it into QLinearConv."""
    if reason := unquantized(conv, exported):
        return reason
    consumers = _consumers(conv.output[0], exported)
    while len(consumers) == 1 and consumers[0].op_type in ("Relu", "Clip"):
        consumers = _consumers(consumers[0].output[0], exported)
    if not any(node.op_type == "QuantizeLinear" for node in consumers):
        return "its output is not quantized (no QuantizeLinear after it)"
    types = {tensor.name: tensor.data_type for tensor in exported.initializer}
    if any(types.get(node.input[2]) == onnx.TensorProto.INT8 for node in consumers if len(node.input) > 2):
        return "its output is quantized to int8; after a ReLU only uint8 with zero point 0 fuses"
    return "it is quantized completely, but ONNX Runtime did not fuse its Q/DQ"


def _consumers(tensor: str, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if tensor in node.input]
