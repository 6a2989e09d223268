"""Our own INT8 version of a network, as a candidate beside the rivals; calibration and export are separate steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nncf.torch.function_hook.quantization.quantize_model  # noqa: F401 - what calibration would import late

from benchmarks.rivals.peers.source import Images, read
from calibration.split import Split
from compress.config import Config, TargetConfig
from compress.engines.base import build_engine
from compress.errors import ModelError
from compress.export.lower import lower
from compress.export.onnx import export_onnx
from compress.models.model import load_model
from compress.quantize.calibrate import calibrate
from compress.targets import profile


def quantize(
    fp32: Path, folder: Path, sample: Split, target: str, out: Path, *, factory: str = ""
) -> Callable[[], Path]:
    """Load and calibrate a network with the default settings.

    Args:
        fp32: its FP32 file, whose metadata the INT8 file gets.
        folder: its ``model.json`` and ``model.safetensors``.
        target: a name in ``compress.targets``.
        out: the folder of the engine file.
        factory: see ``load_model``.

    Returns:
        a function that exports and builds the engine file and returns its path.

    Raises:
        ModelError: ``fp32`` is of another network, or the network cannot be quantized.
    """
    model, rule = load_model(folder, factory), profile(target)
    images = Images(sample, model.preprocess, Config().quantize.batch_size)
    calibrated = calibrate(model.net, images, target)

    def write() -> Path:
        metadata = read(fp32).int8(target)
        if (metadata.arch, metadata.classes) != (model.arch, model.classes):
            raise ModelError(f"{fp32} ({metadata.arch}) is not the network in {folder} ({model.arch})")
        exported = out / f"{fp32.stem.removesuffix('_fp32')}_{target}.onnx"
        half = rule.float_type == "float16"
        export_onnx(lower(calibrated.net, calibrated.quantizers), exported, metadata, rule.opset, half=half)
        built_for = TargetConfig(name=target)
        return build_engine(built_for.engine, exported, out, built_for)

    return write
