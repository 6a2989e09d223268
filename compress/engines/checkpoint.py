"""A trained network run by PyTorch: the saved network of a stage, opened and measured like an engine.

Nothing is built: ``runs/NAME/baseline/model.safetensors`` is the engine file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from compress import __version__
from compress.engines.base import Array, Closing, OpenOptions, TensorSpec, check_feeds
from compress.engines.metadata import Metadata
from compress.errors import BackendAbsent, EngineError
from compress.models.cost import count
from compress.models.model import ANY, TENSORS, load_model


class CheckpointEngine(Closing):
    """A network in eval mode, float32, run eagerly; see ``compress.engines.base.Engine``."""

    name = "torch"
    max_batch: int | None = None

    def __init__(self, path: Path, options: OpenOptions) -> None:
        require(options.device)
        if path.name != TENSORS:
            raise EngineError(f"{path} is not a stage's {TENSORS}", remedy="give runs/NAME/STAGE/model.safetensors")
        model = load_model(path.parent, ANY if options.trust else "")
        torch.set_num_threads(options.threads)
        self.version: str = torch.__version__
        self.requested = self.provider = options.device
        self._net = model.net.to(options.device)
        with torch.inference_mode():
            example = self._net(model.example().to(options.device))
        if not isinstance(example, torch.Tensor):
            raise EngineError(
                f"{path} returns {type(example).__name__}, not one tensor", remedy="export it to ONNX first"
            )
        cost = count(model.net, model.preprocess.shape)
        self.metadata = Metadata(
            model.arch, "fp32", model.preprocess, model.classes, cost.macs, cost.params, "", __version__
        )
        self.inputs = (TensorSpec("input", (None, *model.preprocess.shape), np.dtype("float32")),)
        self.outputs = (TensorSpec("output", (None, *example.shape[1:]), np.dtype("float32")),)
        self.modes: Mapping[str, str | int | bool] = {"intra_op_threads": torch.get_num_threads(), "compiled": False}

    @torch.inference_mode()
    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        check_feeds(self.inputs, feeds)
        images = torch.from_numpy(feeds["input"]).to(self.provider)
        return {"output": self._net(images).cpu().numpy()}

    def close(self) -> None:
        del self._net


def require(device: str) -> None:
    """Raise BackendAbsent if there is no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendAbsent("PyTorch sees no CUDA device on this machine", remedy="use `--device cpu`")


def open_engine(path: Path, options: OpenOptions) -> CheckpointEngine:
    """Open the ``model.safetensors`` of a stage.

    Raises:
        PipelineError: it cannot be loaded, or ``model.json`` is not beside it.
    """
    return CheckpointEngine(path, options)
