"""Test whether INT8 arithmetic overflows on this machine.

Some processors add pairs of products in saturating int16 (``compress.quantize.pairs``); they give wrong results for a
file whose weights were not chosen for that. The name of a processor does not tell which arithmetic it has, so the
engine runs a convolution whose sum shows it.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Literal, cast

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from compress.engines.base import Array, Opener, OpenOptions, backend, infer
from compress.registries import BACKENDS

PairSums = Literal["int32", "int16"]

_ENGINES = ("onnxruntime", "openvino")  # the engines that run on processors
_CHANNELS, _KERNEL, _SIDE = 16, 3, 8
_EXACT = 127 * 255 * _CHANNELS * _KERNEL**2


@cache
def pair_sums(engine: str) -> PairSums | None:
    """The integer type in which an engine adds two products of its INT8 convolutions on this machine.

    None for an engine on a GPU, and if the sum is neither the exact one nor the clipped one.

    With weights of 127 and activations of 255 two products are 64770, which int16 clips to 32767: the sum over a
    convolution is about half of the exact one.

    Raises:
        BackendAbsent: the engine is not installed.
    """
    if engine not in _ENGINES:
        return None
    module = cast(Opener, backend(engine))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"probe{BACKENDS['onnxruntime'].suffix}"
        path.write_bytes(probe())
        with module.open_engine(path, OpenOptions()) as opened:
            image = np.full((1, _CHANNELS, _SIDE, _SIDE), 255.0, np.float32)
            share = float(np.median(infer(opened, image))) / _EXACT
    return read_probe(share)


def probe() -> bytes:
    """An ONNX file with one INT8 convolution, all weights 127, for an input (1, 16, 8, 8) of 255 everywhere."""
    return convolution(np.full((_CHANNELS, _CHANNELS, _KERNEL, _KERNEL), 127, np.int8), largest=_EXACT)


def convolution(weights: Array, largest: float, groups: int = 1) -> bytes:
    """An ONNX file with one INT8 convolution whose output is its sums of products of integers.

    Args:
        weights: int8 (C_out, C_in of a group, kh, kw). The input is (1, C_in, 8, 8), values 0 to 255.
        largest: sum that must be distinguished from others; the output rounds to a 200th of it.
    """
    outputs, inputs, height, width = weights.shape
    constants = {
        "one": np.float32(1),
        "zero": np.uint8(0),
        "weights": weights,
        "ones": np.ones(outputs, np.float32),
        "zeros": np.zeros(outputs, np.int8),
        "step": np.float32(largest / 200),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["weights", "ones", "zeros"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["y"], group=groups),
        helper.make_node("QuantizeLinear", ["y", "step", "zero"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "step", "zero"], ["output"]),
    ]
    shapes = {
        "input": [1, inputs * groups, _SIDE, _SIDE],
        "output": [1, outputs, _SIDE + 1 - height, _SIDE + 1 - width],
    }
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "convolution", [given], [made], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized


def read_probe(share: float) -> PairSums | None:
    """Interpret a probe's output, given as a share of the exact one.

    >>> read_probe(1.0), read_probe(0.505), read_probe(0.7)
    ('int32', 'int16', None)
    """
    clipped = (2**15 - 1) / (2 * 127 * 255)
    expected: dict[PairSums, float] = {"int32": 1.0, "int16": clipped}
    return next((name for name, value in expected.items() if abs(share - value) < 0.02), None)
