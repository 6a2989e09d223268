"""NNCF on the ONNX file itself; ONNX Runtime collects the statistics and runs the result."""

from __future__ import annotations

from pathlib import Path

# What NNCF would import late, in the middle of what is timed.
import nncf.onnx.quantization.quantize_model  # noqa: F401

from benchmarks.rivals.peers.nncf_ptq import quantized
from benchmarks.rivals.peers.source import Images, Source, with_metadata
from compress.files import write_atomic


def quantize(source: Source, images: Images, out: Path) -> None:
    """Write NNCF's INT8 version of ``source`` as ONNX.

    Raises:
        EngineError: NNCF cannot quantize it.
    """
    model = quantized(source.model, images, lambda x: {source.input: x.numpy()})
    write_atomic(out, with_metadata(model, source.int8("ort-x86")))
