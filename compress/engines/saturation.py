"""Does INT8 arithmetic overflow on this machine?

Where a processor adds pairs of products in saturating int16 (``compress.quantize.pairs``), a file whose weights are not
made for it computes something else than on other processors. A processor's name does not tell; so the engine is asked
to run a convolution whose sum does.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Literal, cast

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from compress.engines.base import BACKENDS, Opener, OpenOptions, backend, infer

PairSums = Literal["int32", "int16"]

_ENGINES = ("onnxruntime", "openvino")  # those that run on processors
_CHANNELS, _KERNEL = 16, 3
_EXACT = 127 * 255 * _CHANNELS * _KERNEL**2


@cache
def pair_sums(engine: str) -> PairSums | None:
    """What an engine adds two products of its INT8 convolutions in, on this machine.

    None for an engine on a GPU, and where the sum is neither the exact one nor the clipped one.

    With weights of 127 and activations of 255 two products are 64770, and int16 clips them to 32767: the sum over a
    convolution comes out as half of what it is.

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
            image = np.full((1, _CHANNELS, 8, 8), 255.0, np.float32)
            share = float(np.median(infer(opened, image))) / _EXACT
    return read_probe(share)


def probe() -> bytes:
    """An ONNX file with one INT8 convolution, all weights 127, for an input (1, 16, 8, 8) of 255 everywhere."""
    weights = np.full((_CHANNELS, _CHANNELS, _KERNEL, _KERNEL), 127, np.int8)
    constants = {
        "one": np.float32(1),
        "zero": np.uint8(0),
        "weights": weights,
        "ones": np.ones(_CHANNELS, np.float32),
        "zeros": np.zeros(_CHANNELS, np.int8),
        "step": np.float32(_EXACT / 200),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["weights", "ones", "zeros"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "step", "zero"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "step", "zero"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, _CHANNELS, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, _CHANNELS, 6, 6])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized


def read_probe(share: float) -> PairSums | None:
    """What a probe's output, as a share of the exact one, says.

    >>> read_probe(1.0), read_probe(0.505), read_probe(0.7)
    ('int32', 'int16', None)
    """
    clipped = (2**15 - 1) / (2 * 127 * 255)
    expected: dict[PairSums, float] = {"int32": 1.0, "int16": clipped}
    return next((name for name, value in expected.items() if abs(share - value) < 0.02), None)
