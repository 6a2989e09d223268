"""ONNX Runtime's own ``quantize_static``, in Q/DQ form, after ``quant_pre_process``.

Unless asked for otherwise, with the settings that are best on x86: uint8 activations, int8 weights per channel.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from benchmarks.rivals.peers.source import Images, Source, with_metadata
from compress.engines.base import Array
from compress.files import write_atomic

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
TYPES = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}
_HELD_BYTES = 10e9  # activations that the histogram methods may hold in memory at once


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands images out a batch at a time, under the name of the network's input; from the start to the end once."""

    def __init__(self, name: str, images: Images) -> None:
        self._name, self._count = name, len(images)
        self._images = iter(images)
        self._part: Iterator[Tensor] = self._images

    def __len__(self) -> int:
        return self._count

    def set_range(self, start_index: int, end_index: int) -> None:
        self._part = islice(self._images, end_index - start_index)

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._part, None)
        return None if batch is None else {self._name: batch.numpy()}


def quantize(
    source: Source,
    images: Images,
    out: Path,
    *,
    method: str = "minmax",
    activations: str = "uint8",
    weights: str = "int8",
    per_channel: bool = True,
    reduce_range: bool = False,
) -> None:
    """Write ONNX Runtime's INT8 version of ``source``.

    Args:
        method: a name in ``METHODS``.
        activations, weights: names in ``TYPES``. Weights per channel are symmetric in both, about 0 or 128.
        per_channel: a scale for each output channel of the weights.
        reduce_range: weights of 7 bits, so that no pair of products overflows int16.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        quant_pre_process(source.model, str(prepared))
        held = activation_bytes(onnx.load(prepared).graph) * images.batch_size
        quantize_static(
            str(prepared),
            str(quantized),
            _Reader(source.input, images),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            reduce_range=reduce_range,
            activation_type=TYPES[activations],
            weight_type=TYPES[weights],
            calibrate_method=METHODS[method],
            # The histogram methods hold every activation of all images, 9 GB for ResNet-18 and 300 images, or else of a
            # stride of them, and merge the histograms; which makes them a little worse, so only where it must be.
            extra_options={"CalibStridedMinMax": stride(len(images), held)},
        )
        model = onnx.load(quantized)
    write_atomic(out, with_metadata(model, source.int8("ort-x86")))


def activation_bytes(graph: onnx.GraphProto) -> int:
    """Bytes of all float32 activations of one image, from the shapes in the graph."""
    shapes = [value.type.tensor_type.shape.dim for value in [*graph.value_info, *graph.output]]
    return sum(4 * math.prod(dim.dim_value for dim in shape[1:]) for shape in shapes)


def stride(batches: int, batch_bytes: int) -> int:
    """The most batches that may be held at once; ``quantize_static`` wants a divisor of their number.

    >>> stride(300, batch_bytes=10**7), stride(300, batch_bytes=10**8), stride(300, batch_bytes=10**11)
    (300, 100, 1)
    """
    return next(s for s in range(batches, 0, -1) if batches % s == 0 and (s == 1 or s * batch_bytes <= _HELD_BYTES))
