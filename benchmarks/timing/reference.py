"""Reference networks: files with a known number of MACs that ONNX Runtime runs beside the engines.

Large convolutions, INT8 and FP32, measure the machine's peak. The share of the peak that an engine reaches shows how
much of the machine its layers leave unused, because they are narrow, wait for memory or are not convolutions.

A network whose layers widen as a ResNet's do measures the machine's pace. A machine is not equally fast at all times;
if the pace differed between two separate runs, a difference of their latencies proves little.
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
Layers = Sequence[tuple[int, int, int]]
"""3x3 convolutions in a row: channels in, channels out, stride."""

# Channels and pixels a side of 3x3 convolutions, two in a row. On an AVX512-VNNI server core they came within 5% of the
# fastest of ten shapes, 1x1 and 3x3, 64 to 1024 channels; the smaller one is for processors with smaller caches.
SHAPES: Mapping[Precision, Sequence[tuple[int, int]]] = {"int8": ((256, 28), (128, 28)), "fp32": ((128, 28),)}
_IN_A_ROW = 2

# Channels in, channels out and stride of the pace's 3x3 convolutions, of 28 pixels a side at first; 19 MB of weights.
# docs/decisions/0012-pace.md compares it with other candidates.
PACE = ((64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1))
_SIDE = 28

ENGINE = "onnxruntime"


@dataclass(frozen=True)
class ReferenceNetwork:
    """A file whose multiply-accumulates are known.

    Attributes:
        macs: of one image.
        throughout: timed in every round, to measure the pace; else only at the beginning.
    """

    path: Path
    precision: Precision
    macs: int
    throughout: bool = False


@contextmanager
def reference_networks(target: str | None = None) -> Iterator[tuple[ReferenceNetwork, ...]]:
    """Write the files for the block: two for the peak (INT8 and FP32), then the one for the pace.

    Args:
        target: the target whose integer types the kernels use; None: the engine's default.
    """
    activations = profile(target or default_target(ENGINE)).activations
    with tempfile.TemporaryDirectory() as folder:
        yield _write(Path(folder), activations)


def _write(folder: Path, activations: Literal["uint8", "int8"]) -> tuple[ReferenceNetwork, ...]:
    found = []
    for precision, shapes in SHAPES.items():
        for channels, side in shapes:
            layers = ((channels, channels, 1),) * _IN_A_ROW
            model = _integer(layers, side, np.dtype(activations)) if precision == "int8" else _float(layers, side)
            path = folder / f"peak_{precision}_{channels}x{side}x{side}.onnx"
            onnx.save(model, path)
            found.append(ReferenceNetwork(path, precision, _macs(layers, side)))
    path = folder / "pace_fp32.onnx"
    onnx.save(_float(PACE, _SIDE), path)
    return (*found, ReferenceNetwork(path, "fp32", _macs(PACE, _SIDE), throughout=True))


def _macs(layers: Layers, side: int) -> int:
    found = 0
    for channels, filters, stride in layers:
        side = -(-side // stride)
        found += 9 * channels * filters * side**2
    return found


def gmacs(macs: int, batch: int, ms: float) -> float:
    """Giga-multiply-accumulates per second: ``macs`` an image, ``ms`` a batch."""
    return macs * batch / ms / 1e6


def peaks(measured: Iterable[tuple[ReferenceNetwork, float]]) -> Mapping[str, float]:
    """Peak GMAC/s by precision: of the fastest reference network of each, one image at a time.

    Args:
        measured: reference networks and their milliseconds.
    """
    found: dict[str, float] = {}
    for one, ms in measured:
        found[one.precision] = max(found.get(one.precision, 0.0), gmacs(one.macs, 1, ms))
    return found


def _float(layers: Layers, side: int) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes, constants, tensor = [], {}, "input"
    for i, (channels, filters, stride) in enumerate(layers):
        scale = 1 / (3 * np.sqrt(channels))  # keeps the variance
        constants[f"w{i}"] = (scale * rng.standard_normal((filters, channels, 3, 3))).astype(np.float32)
        output = "output" if i == len(layers) - 1 else f"x{i}"
        nodes.append(helper.make_node("Conv", [tensor, f"w{i}"], [output], pads=[1] * 4, strides=[stride] * 2))
        tensor = output
    return _model(nodes, constants, layers, side)


def _integer(layers: Layers, side: int, activation: np.dtype[np.integer]) -> onnx.ModelProto:
    """Integer convolutions as ONNX Runtime's own operator, so that nothing has to be fused; one Q and one DQ."""
    rng = np.random.default_rng(0)
    middle = 128 if activation == np.uint8 else 0
    constants: dict[str, np.ndarray] = {"scale": np.array(1 / 32, np.float32), "zero": np.array(middle, activation)}
    nodes, tensor = [helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"])], "q"
    for i, (channels, filters, stride) in enumerate(layers):
        constants[f"w{i}"] = rng.integers(-127, 128, (filters, channels, 3, 3), dtype=np.int8)
        constants[f"scale{i}"] = np.full(filters, 1 / (3 * 64 * np.sqrt(channels)), np.float32)
        constants[f"zero{i}"] = np.zeros(filters, np.int8)
        inputs = [tensor, "scale", "zero", f"w{i}", f"scale{i}", f"zero{i}", "scale", "zero"]
        nodes.append(helper.make_node("QLinearConv", inputs, [f"x{i}"], pads=[1] * 4, strides=[stride] * 2))
        tensor = f"x{i}"
    nodes.append(helper.make_node("DequantizeLinear", [tensor, "scale", "zero"], ["output"]))
    return _model(nodes, constants, layers, side)


def _model(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, np.ndarray], layers: Layers, side: int
) -> onnx.ModelProto:
    shapes: list[list[str | int | None]] = [["batch", layers[0][0], side, side], ["batch", layers[-1][1], None, None]]
    ends = zip(("input", "output"), shapes, strict=True)
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends]
    values = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    # Do not rename the graph: separate runs recognize the reference network by the hash of this file.
    graph = helper.make_graph(nodes, "yardstick", tensors[:1], tensors[1:], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
