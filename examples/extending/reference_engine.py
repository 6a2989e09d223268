"""An engine in one file: it opens an ONNX file with ONNX's own reference evaluator."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from compress.config import TargetConfig
from compress.engines.base import Array, Closing, Engine, OpenOptions, TensorSpec, metadata_of
from compress.engines.metadata import Metadata
from compress.engines.sidecar import write_sidecar
from compress.errors import BackendAbsent
from compress.files import write_atomic
from compress.progress import Progress


def require(device: str) -> None:
    """It runs wherever NumPy does."""
    if device != "cpu":
        raise BackendAbsent(f"the reference evaluator runs on the processor, not on '{device}'")


def build(onnx_path: Path, out_dir: Path, target: TargetConfig, progress: Progress) -> Path:
    """The engine file is the ONNX file, under a suffix of its own."""
    engine = out_dir / f"{onnx_path.stem}.reference"
    write_atomic(engine, onnx_path.read_bytes())
    with ReferenceEngine(engine) as opened:
        write_sidecar(
            engine,
            onnx_path,
            opened.metadata,
            engine=opened.name,
            version=opened.version,
            device=target.device,
            threads=target.threads,
            batch=target.batch,
        )
    return engine


def open_engine(path: Path, options: OpenOptions) -> Engine:
    return ReferenceEngine(path)


class ReferenceEngine(Closing):
    """See ``compress.engines.base.Engine``."""

    def __init__(self, path: Path) -> None:
        model = onnx.load_model_from_string(path.read_bytes())
        self._run = ReferenceEvaluator(model)
        self.inputs = tuple(map(_spec, model.graph.input))
        self.outputs = tuple(map(_spec, model.graph.output))
        self.metadata: Metadata | None = metadata_of({entry.key: entry.value for entry in model.metadata_props}, path)
        self.name, self.version = "reference", onnx.__version__
        self.requested = self.provider = "cpu"
        self.modes: Mapping[str, str | int | bool] = {}
        self.max_batch: int | None = None

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip((spec.name for spec in self.outputs), self._run.run(None, dict(feeds)), strict=True))

    def close(self) -> None:
        """There is nothing to close."""


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    return TensorSpec(value.name, shape, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)))
