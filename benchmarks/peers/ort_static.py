"""``python -m benchmarks.peers.ort_static --fp32 FILE --data FOLDER --out FILE``: ONNX Runtime's own INT8 of a file.

Its ``quantize_static`` with the settings that are best on x86: uint8 activations, int8 weights per channel, after
``quant_pre_process``. The result can be given to ``benchmarks.latency`` and ``benchmarks.accuracy`` beside ours.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.images import calibration_split, preprocess_of
from benchmarks.latency import count, seed
from calibration.datasets import Split
from calibration.loader import batches
from calibration.preprocess import Preprocess
from calibration.sampler import calibration_sample
from calibration.transforms import eval_transform
from compress.cli import run_command
from compress.engines.base import Array, metadata_of, open_engine
from compress.progress import Terminal
from compress.run import write_atomic

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands images out one batch at a time, under the name of the network's input."""

    def __init__(self, name: str, images: Iterator[Array]) -> None:
        self._name, self._images = name, images

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._images, None)
        return None if batch is None else {self._name: batch}


def quantize(fp32: Path, out: Path, sample: Split, *, method: str = "minmax", batch_size: int = 1) -> None:
    """Write ONNX Runtime's own INT8 version of ``fp32``, with the same metadata but for the precision.

    Args:
        sample: the calibration images.
        method: a name in ``METHODS``.

    Raises:
        EngineError: ``fp32`` does not load, or does not say how its images are prepared.
    """
    with open_engine(fp32) as engine:
        preprocess, name = preprocess_of(engine, fp32), engine.inputs[0].name
    with tempfile.TemporaryDirectory() as folder:
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        quant_pre_process(str(fp32), str(prepared))
        quantize_static(
            str(prepared),
            str(quantized),
            _Reader(name, _inputs(sample, preprocess, batch_size)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=METHODS[method],
        )
        model = onnx.load(quantized)
    metadata = metadata_of({entry.key: entry.value for entry in onnx.load(fp32).metadata_props})
    assert metadata is not None  # preprocess_of has seen it
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, replace(metadata, precision="int8", target="onnxruntime").to_props())
    write_atomic(out, model.SerializeToString())


def _inputs(sample: Split, preprocess: Preprocess, batch_size: int) -> Iterator[Array]:
    for x, _ in batches(sample, eval_transform(preprocess), batch_size):
        yield x.numpy()


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.peers.ort_static", description=__doc__)
    p.add_argument("--fp32", type=Path, required=True, metavar="FILE", help="exported FP32 file")
    p.add_argument("--data", required=True, help="calibration images: digits, cifar10:FOLDER, or an image folder")
    p.add_argument("--images", type=count, default=300, metavar="N", help="how many, class-balanced (300)")
    p.add_argument("--method", choices=sorted(METHODS), default="minmax", help="how ranges are found (minmax)")
    p.add_argument("--seed", type=seed, default=0, help="which images (0)")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="INT8 file to write")
    return p


def _command(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    split = calibration_split(args.data)
    sample = split.subset(calibration_sample(split, args.images, seed=args.seed), "calibration")
    progress = Terminal()
    progress.note(f"quantizing {args.fp32} on {len(sample)} images ({args.method})")
    quantize(args.fp32, args.out, sample, method=args.method)
    progress.note(f"written: {args.out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 error, 2 usage."""
    return run_command(lambda: _command(argv))


if __name__ == "__main__":
    sys.exit(main())
