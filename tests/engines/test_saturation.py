"""How this machine's engines add INT8 products, asked of them; and that they add no pair that we do not know of."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.engines.base import BACKENDS, OpenOptions, backend, infer
from compress.engines.saturation import pair_sums, probe, read_probe
from compress.errors import BackendAbsent
from compress.quantize.pairs import overflowing, pairs

ENGINES = ["onnxruntime", "openvino"]
ONE, BOTH = 127 * 255, 2 * 127 * 255


def test_the_engines_of_a_processor_answer_and_others_do_not() -> None:
    assert {pair_sums(engine) for engine in ENGINES} <= {"int32", "int16"}
    assert pair_sums("tensorrt") is None


def test_an_engine_that_is_not_here_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pair_sums.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(BackendAbsent, match="OpenVINO is not installed"):
        pair_sums("openvino")


def test_what_the_probe_says_and_what_it_cannot_say() -> None:
    assert (read_probe(1.0), read_probe(32767 / BOTH)) == ("int32", "int16")
    assert read_probe(0.0) is None
    onnx.checker.check_model(onnx.load_from_string(probe()), full_check=True)


def two_weights_each(shape: tuple[int, int, int]) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """An output channel for every two weights of a kernel: these at 127, the others 0."""
    size = int(np.prod(shape))
    chosen = list(itertools.combinations(range(size), 2))
    weights = np.zeros((len(chosen), size), np.int8)
    for channel, two in enumerate(chosen):
        weights[channel, two] = 127
    return weights.reshape(-1, *shape), chosen


def convolution(weights: np.ndarray, path: Path) -> Path:
    """The sums for an input of 255 everywhere, in steps fine enough to tell one product from two."""
    outputs, channels, height, width = weights.shape
    constants = {
        "one": np.float32(1),
        "zero": np.uint8(0),
        "weights": weights,
        "ones": np.ones(outputs, np.float32),
        "zeros": np.zeros(outputs, np.int8),
        "step": np.float32(BOTH / 250),
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
        "two",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, channels, height + 3, width + 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, outputs, 4, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", [(1, 3, 3), (3, 3, 3), (4, 1, 1), (5, 1, 2), (8, 1, 1), (4, 2, 2)], ids=str)
def test_no_engine_here_adds_pairs_that_we_do_not_know_of(
    engine: str, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    weights, chosen = two_weights_each(shape)
    path = convolution(weights, tmp_path / f"two{BACKENDS['onnxruntime'].suffix}")
    image = np.full((1, shape[0], shape[1] + 3, shape[2] + 3), 255.0, np.float32)
    with backend(engine).open_engine(path, OpenOptions()) as opened:
        sums = infer(opened, image)[0].reshape(len(chosen), -1)
    known = {tuple(sorted(pair)) for found in pairs(shape) for pair in found.tolist()}
    clipped = {two for two, total in zip(chosen, sums, strict=True) if total.min() < 0.9 * BOTH}
    assert clipped <= known
    assert bool(clipped) <= (pair_sums(engine) == "int16")
    assert all(overflowing(weights[chosen.index(two)][None]).any() for two in clipped)


def test_pairs_of_an_even_number_of_channels_are_the_same_in_every_order() -> None:
    for shape in ((2, 3, 3), (64, 1, 1), (6, 1, 3), (10,)):
        (found,) = pairs(shape)
        assert sorted(found.ravel().tolist()) == list(range(int(np.prod(shape))))
