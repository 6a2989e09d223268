"""The script that ``benchmarks.arm`` runs in the emulated Python, which has only numpy and onnxruntime."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort


def run(model: Path, options: Any, images: Any) -> Any:
    """The first output for each image (N, C, H, W), one at a time, as one array (N, ...)."""
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: image[None]})[0] for image in images])


if __name__ == "__main__":
    engine, work = map(Path, sys.argv[1:])
    settings = ort.SessionOptions()
    settings.optimized_model_filepath = str(work / "optimized.onnx")
    np.save(work / "outputs.npy", run(engine, settings, np.load(work / "images.npy")))
    np.save(work / "probed.npy", run(work / "probe.onnx", ort.SessionOptions(), np.load(work / "probe.npy")))
