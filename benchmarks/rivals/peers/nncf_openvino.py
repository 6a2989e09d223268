"""NNCF on OpenVINO's form of the file; OpenVINO collects the statistics and runs the result."""

from __future__ import annotations

import tempfile
from pathlib import Path

# What NNCF would import late, in the middle of what is timed.
import nncf.openvino.quantization.quantize_model  # noqa: F401
import openvino

from benchmarks.rivals.peers.nncf_ptq import quantized
from benchmarks.rivals.peers.source import Images, Source
from compress.engines.base import engine_files
from compress.files import write_atomic


def quantize(source: Source, images: Images, out: Path, *, overflow_fix: str = "first_layer_only") -> None:
    """Write NNCF's INT8 version of ``source`` as ``out`` (.xml) with its weights (.bin) beside it.

    Args:
        overflow_fix: see ``nncf_ptq.quantized``.

    Raises:
        EngineError: NNCF cannot quantize it.
    """
    floats = openvino.Core().read_model(source.path)
    model = quantized(floats, images, lambda x: x.numpy(), overflow_fix=overflow_fix)
    for key, value in source.int8("openvino").to_props().items():
        model.set_rt_info(value, ["framework", key])  # where OpenVINO keeps the properties of an ONNX file
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / out.name
        openvino.save_model(model, saved, compress_to_fp16=False)
        for file in reversed(engine_files(saved)):  # an .xml never stands without its weights
            write_atomic(out.with_name(file.name), file.read_bytes())
