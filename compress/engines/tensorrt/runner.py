"""A TensorRT plan, opened and run on the GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from compress.engines.base import Array, Closing, OpenOptions, TensorSpec, check_feeds, metadata_of
from compress.engines.sidecar import read_sidecar
from compress.engines.tensorrt.native import Loaded, cuda_in_words, deserialize, in_words
from compress.errors import EngineError

if TYPE_CHECKING:
    from compress.engines.tensorrt.edition import Edition


class TensorRTEngine(Closing):
    """A deserialized plan with its buffers and a CUDA graph; see ``compress.engines.base.Engine``.

    Buffers, pinned on the host and on the device, are made once for the shapes of the inputs, and the inference on them
    is captured as a CUDA graph: launching its kernels one by one takes longer than a small network computes. Inputs of
    another shape make both again. A run that cannot be captured is launched kernel by kernel, and ``modes`` says so.
    """

    def __init__(self, edition: Edition, path: Path, options: OpenOptions) -> None:
        self._edition, self._path = edition, path
        trt = edition.module()
        self.name = edition.name
        self.requested = self.provider = edition.title
        self.version: str = trt.__version__
        record = read_sidecar(path) if options.trust else edition.vouch(path)
        self.metadata = None if record is None else metadata_of(record.metadata, path)
        built: Mapping[str, Any] = {} if record is None else record.options
        self._loaded: Loaded | None = deserialize(
            trt,
            path.read_bytes(),
            host_code=options.trust or bool(built.get("version_compatible")),
            dla_core=built.get("dla_core"),
        )
        engine = self._loaded.engine
        self._context = context = edition.context(trt, engine, path)
        if context is None:
            raise EngineError(
                f"the GPU has not enough memory for {path}", remedy="stop other programs that use the GPU"
            )
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.inputs = tuple(_spec(trt, engine, name) for name in inputs)
        self.outputs = tuple(_spec(trt, engine, name) for name in names if name not in inputs)
        ranges = [engine.get_tensor_profile_shape(name, 0) for name in inputs]
        self.max_batch: int | None = ranges[0][2][0]
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._host: dict[str, torch.Tensor] = {}
        self._device: dict[str, torch.Tensor] = {}
        self._graph: torch.cuda.CUDAGraph | None = None
        with cuda_in_words():
            self._prepare([tuple(best) for _, best, _ in ranges])

    @property
    def modes(self) -> Mapping[str, str | int | bool]:
        """The settings; ``cuda_graph_refused`` gives the reason if the run could not be captured."""
        refused = {"cuda_graph_refused": self._refused} if self._refused else {}
        return {"cuda_graph": self._graph is not None, **refused, "transfers": True, "streams": 1}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        check_feeds(self.inputs, feeds)
        with cuda_in_words():
            self._run([feeds[spec.name] for spec in self.inputs])
        return {spec.name: self._host[spec.name].numpy().copy() for spec in self.outputs}

    def _run(self, arrays: Sequence[Array]) -> None:
        """Copy the input arrays in, run, and leave the outputs in the host buffers."""
        shapes = [array.shape for array in arrays]
        if shapes != self._shapes:
            self._prepare(shapes)
        for spec, array in zip(self.inputs, arrays, strict=True):
            np.copyto(self._host[spec.name].numpy(), array)
        with torch.cuda.stream(self._stream):
            for spec in self.inputs:
                self._device[spec.name].copy_(self._host[spec.name], non_blocking=True)
            if self._graph is None:
                self._enqueue()
            else:
                self._graph.replay()
            for spec in self.outputs:
                self._host[spec.name].copy_(self._device[spec.name], non_blocking=True)
        self._stream.synchronize()

    def _prepare(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Make buffers for inputs of these shapes, and capture the run on them."""
        self._shapes: Sequence[tuple[int, ...]] = []  # a failure must not leave a half-made state
        self._graph = None
        context = self._context
        for spec, shape in zip(self.inputs, shapes, strict=True):
            if not context.set_input_shape(spec.name, shape):
                raise EngineError(f"input '{spec.name}' is {shape}, outside the range that the plan was built for")
        for spec in (*self.inputs, *self.outputs):
            host = torch.from_numpy(np.empty(tuple(context.get_tensor_shape(spec.name)), spec.dtype)).pin_memory()
            self._host[spec.name], self._device[spec.name] = host, torch.empty_like(host, device="cuda")
            context.set_tensor_address(spec.name, self._device[spec.name].data_ptr())
        torch.cuda.current_stream().synchronize()  # wait for the buffers before another stream uses them
        with torch.cuda.stream(self._stream):
            self._enqueue()  # the first run on new shapes sets TensorRT up, which cannot be captured
        self._stream.synchronize()
        self._edition.after_run(context, self._path)
        self._graph, self._refused = self._capture()
        self._shapes = shapes

    def _capture(self) -> tuple[torch.cuda.CUDAGraph | None, str]:
        """Capture the run as a CUDA graph; if that fails, return the reason."""
        graph = torch.cuda.CUDAGraph()
        try:
            # The outer block restores the caller's stream also if torch, after a failed capture, does not.
            with torch.cuda.stream(self._stream), torch.cuda.graph(graph, stream=self._stream):
                self._enqueue()
        except (RuntimeError, EngineError) as error:
            return None, str(error).partition("\n")[0]
        return graph, ""

    def _enqueue(self) -> None:
        assert self._loaded is not None
        logger = self._loaded.logger
        logger.errors.clear()
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise EngineError(f"TensorRT failed to run the plan: {in_words(logger.errors)}")

    def close(self) -> None:
        self._graph = None
        self._host.clear()
        self._device.clear()
        self._context = None
        self._loaded = None


def _spec(trt: Any, engine: Any, name: str) -> TensorSpec:
    shape = tuple(None if dim == -1 else dim for dim in engine.get_tensor_shape(name))
    return TensorSpec(name, shape, np.dtype(trt.nptype(engine.get_tensor_dtype(name))))
