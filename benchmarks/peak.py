"""The machine's peak: multiply-accumulates per second of large convolutions, INT8 and FP32, in ONNX Runtime.

What an engine reaches of it says how much its layers leave unused: thin ones, memory traffic, what is no convolution.
The peak is measured in the same interleaved run as the engine, so that both have the same machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compress.targets import default_target, profile

Precision = Literal["fp32", "int8"]

# Channels and pixels a side of 3x3 convolutions, two in a row. On an AVX512-VNNI server core they came within 5% of the
# fastest of ten shapes, 1x1 and 3x3, 64 to 1024 channels; the smaller one is for processors with smaller caches.
SHAPES: Mapping[Precision, Sequence[tuple[int, int]]] = {"int8": ((256, 28), (128, 28)), "fp32": ((128, 28),)}
_IN_A_ROW = 2
ENGINE = "onnxruntime"


@dataclass(frozen=True)
class Yardstick:
    """A file whose multiply-accumulates are known.

    Attributes:
        macs: of one image.
    """

    path: Path
    precision: Precision
    macs: int


@contextmanager
def yardsticks(target: str | None = None) -> Iterator[tuple[Yardstick, ...]]:
    """The files, INT8 and FP32, for as long as the block lasts.

    Args:
        target: whose kernels' integers they use; None: the default of the engine.
    """
    activations = profile(target or default_target(ENGINE)).activations
    with tempfile.TemporaryDirectory() as folder:
        yield _write(Path(folder), activations)


def _write(folder: Path, activations: Literal["uint8", "int8"]) -> tuple[Yardstick, ...]:
    found = []
    for precision, shapes in SHAPES.items():
        for channels, side in shapes:
            path = folder / f"peak_{precision}_{channels}x{side}x{side}.onnx"
            model = _integer(channels, side, np.dtype(activations)) if precision == "int8" else _float(channels, side)
            onnx.save(model, path)
            found.append(Yardstick(path, precision, _IN_A_ROW * (3 * channels * side) ** 2))
    return tuple(found)


def gmacs(macs: int, batch: int, ms: float) -> float:
    """Giga-multiply-accumulates per second: ``macs`` an image, ``ms`` a batch."""
    return macs * batch / ms / 1e6


def peaks(yardsticks: Iterable[Yardstick], medians_ms: Iterable[float]) -> Mapping[str, float]:
    """GMAC/s by precision: of the fastest yardstick of each, one image at a time."""
    found: dict[str, float] = {}
    for one, ms in zip(yardsticks, medians_ms, strict=True):
        found[one.precision] = max(found.get(one.precision, 0.0), gmacs(one.macs, 1, ms))
    return found


def _float(channels: int, side: int) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes, constants, tensor = [], {}, "input"
    for i in range(_IN_A_ROW):
        scale = 1 / (3 * np.sqrt(channels))  # keeps the variance
        constants[f"w{i}"] = (scale * rng.standard_normal((channels, channels, 3, 3))).astype(np.float32)
        output = "output" if i == _IN_A_ROW - 1 else f"x{i}"
        nodes.append(helper.make_node("Conv", [tensor, f"w{i}"], [output], pads=[1] * 4))
        tensor = output
    return _model(nodes, constants, channels, side)


def _integer(channels: int, side: int, activation: np.dtype[np.integer]) -> onnx.ModelProto:
    """Integer convolutions as ONNX Runtime's own operator, so that no fusion is left to it; one Q and one DQ."""
    rng = np.random.default_rng(0)
    middle = 128 if activation == np.uint8 else 0
    constants: dict[str, np.ndarray] = {
        "scale": np.array(1 / 32, np.float32),
        "zero": np.array(middle, activation),
        "weight_scale": np.full(channels, 1 / (3 * 64 * np.sqrt(channels)), np.float32),
        "weight_zero": np.zeros(channels, np.int8),
    }
    nodes, tensor = [helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"])], "q"
    for i in range(_IN_A_ROW):
        constants[f"w{i}"] = rng.integers(-127, 128, (channels, channels, 3, 3), dtype=np.int8)
        inputs = [tensor, "scale", "zero", f"w{i}", "weight_scale", "weight_zero", "scale", "zero"]
        nodes.append(helper.make_node("QLinearConv", inputs, [f"x{i}"], pads=[1] * 4))
        tensor = f"x{i}"
    nodes.append(helper.make_node("DequantizeLinear", [tensor, "scale", "zero"], ["output"]))
    return _model(nodes, constants, channels, side)


def _model(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, np.ndarray], channels: int, side: int
) -> onnx.ModelProto:
    shape: list[str | int | None] = ["batch", channels, side, side]
    graph = helper.make_graph(
        nodes,
        "peak",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
