"""FP16 typing on files of our own exporter, and on small graphs at the edges of what FP16 can hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from calibration.preprocess import Preprocess
from compress.config import load_config
from compress.engines.metadata import Metadata
from compress.errors import ModelError
from compress.export.half import half_scale, to_half
from compress.export.lower import lower
from compress.export.onnx import export_onnx
from compress.export.parity import EVALUATED, INT8_ERROR, Reference, check, compare, run_onnx, run_torch
from compress.export.stage import export
from compress.models.model import Model, save_model
from compress.models.registry import build
from compress.quantize.calibrate import Calibrated, calibrate
from compress.quantize.stage import quantize
from compress.run import Run

METADATA = Metadata("net", "int8", Preprocess(32), ("a", "b"), 10, 20, "tensorrt", "0.1.0")


def is_half(model: onnx.ModelProto) -> bool:
    """Whether the file holds anything in FP16."""
    return any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)


@pytest.fixture(scope="module")
def calibrated(make: Callable[[str], nn.Module]) -> Calibrated:
    sample = [torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))]
    return calibrate(make("cifar_resnet20"), sample, "tensorrt")


@pytest.fixture(scope="module")
def files(calibrated: Calibrated, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same network, typed float32 and float16."""
    folder = tmp_path_factory.mktemp("half")
    single, half = folder / "single.onnx", folder / "half.onnx"
    export_onnx(lower(calibrated.net, calibrated.quantizers), single, METADATA, opset=20)
    export_onnx(lower(calibrated.net, calibrated.quantizers), half, METADATA, opset=20, half=True)
    return single, half


def arrays(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def qdq(scale: NDArray[np.float32], integers: NDArray[np.int8], opset: int = 20, bias: float = 0.0) -> onnx.ModelProto:
    """input -> QDQ -> matmul with a weight (2, 2) that is dequantized along its first axis -> + bias -> output."""
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "step"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step"], ["x"]),
        helper.make_node("DequantizeLinear", ["integers", "scale"], ["w"], axis=0),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Add", ["y", "bias"], ["output"]),
    ]
    values = {"step": np.float32(0.5), "scale": scale, "integers": integers, "bias": np.float32(bias)}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("input", "output")]
    graph = helper.make_graph(
        nodes, "qdq", ends[:1], ends[1:], [numpy_helper.from_array(np.asarray(v), k) for k, v in values.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_all_floats_inside_are_float16_and_the_integers_stay(files: tuple[Path, Path]) -> None:
    single, half = (onnx.load(path) for path in files)
    before, after = arrays(single), arrays(half)
    assert before.keys() == after.keys()
    assert {array.dtype for array in after.values()} == {np.dtype("float16"), np.dtype("int8"), np.dtype("int64")}
    for name, array in before.items():
        expected = array.astype(np.float16) if array.dtype == np.float32 else array
        np.testing.assert_array_equal(after[name], expected)


def test_inputs_and_outputs_are_float32_with_one_cast_at_each_end(files: tuple[Path, Path]) -> None:
    single, half = (onnx.load(path) for path in files)
    assert half.graph.input == single.graph.input
    assert half.graph.output == single.graph.output
    casts = [node for node in half.graph.node if node.op_type == "Cast"]
    assert [list(node.input) for node in casts if "input" in node.input] == [["input"]]
    assert [list(node.output) for node in casts if "logits" in node.output] == [["logits"]]
    assert len(casts) == 2
    assert len(half.graph.node) == len(single.graph.node) + 2
    onnx.checker.check_model(half, full_check=True)
    assert is_half(half)
    assert not is_half(single)


def test_metadata_survive_and_the_same_net_gives_the_same_bytes(files: tuple[Path, Path], tmp_path: Path) -> None:
    single, half = (onnx.load(path) for path in files)
    assert Metadata.from_props({entry.key: entry.value for entry in half.metadata_props}) == METADATA
    first, second = (to_half(single).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_parity_runs_the_float16_file_right(files: tuple[Path, Path], calibrated: Calibrated) -> None:
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    assert check(files[1], Reference("torch", calibrated.fake(), INT8_ERROR), images, EVALUATED).cosine > 0.99
    expected = run_torch(calibrated.net, images)
    single, half = (compare(expected, run_onnx(path, images, optimized=False)).error for path in files)
    assert half < 1.5 * single  # no farther from the float network than the float32 file is


def test_a_float16_file_of_another_net_fails_parity(files: tuple[Path, Path], make: Callable[[str], nn.Module]) -> None:
    with pytest.raises(ModelError, match="does not compute the same as torch"):
        check(files[1], Reference("torch", make("cifar_resnet20_b"), INT8_ERROR), torch.randn(4, 3, 32, 32), EVALUATED)


def test_a_backbone_with_several_outputs(
    make: Callable[[str], nn.Module], images: list[Tensor], tmp_path: Path
) -> None:
    calibrated = calibrate(make("maps"), images, "tensorrt")
    path = tmp_path / "maps.onnx"
    export_onnx(lower(calibrated.net, calibrated.quantizers), path, METADATA, opset=20, half=True)
    assert {out.type.tensor_type.elem_type for out in onnx.load(path).graph.output} == {TensorProto.FLOAT}
    assert check(path, Reference("torch", calibrated.fake(), INT8_ERROR), images[0], EVALUATED).cosine > 0.99


def test_the_stage_types_the_int8_file_alone(tmp_path: Path) -> None:
    config = load_config(
        None,
        ["model.arch=tiny_net:tiny", "data.input_size=16", "quantize.calibration_images=20", "target.name=tensorrt"],
    )
    torch.manual_seed(0)
    net = build(config.model.arch, 10).eval()
    run = Run(tmp_path)
    run.stage(
        "baseline", lambda out, _: save_model(Model(net, config.model.arch, Preprocess(16), ()), out), settings={}
    )
    quantize(config, run, source="baseline")
    out = export(config, run, source="baseline")
    assert {path.name: is_half(onnx.load(path)) for path in out.glob("*.onnx")} == {
        "tiny_int8.onnx": True,
        "tiny_fp32.onnx": False,
        "tiny_dense_fp32.onnx": False,
    }


def test_float16_scales_need_opset_19() -> None:
    model = qdq(np.float32([1, 1]), np.int8([[1, 2], [3, 4]]), opset=18)
    with pytest.raises(ModelError, match="opset 19 or later, the file has 18"):
        to_half(model)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("bias", qdq(np.float32([1, 1]), np.int8([[1, 2], [3, 4]]), bias=70000.0)),
        ("bias", qdq(np.float32([1, 1]), np.int8([[1, 2], [3, 4]]), bias=float("nan"))),
        ("scale", qdq(np.float32([1, 600]), np.int8([[1, 2], [3, 4]]))),
    ],
)
def test_what_float16_cannot_hold_is_an_error_that_names_it(name: str, model: onnx.ModelProto) -> None:
    with pytest.raises(ModelError, match=f"'{name}' needs values up to"):
        to_half(model)


def test_a_scale_that_is_no_constant_is_an_error() -> None:
    model = qdq(np.float32([1, 1]), np.int8([[1, 2], [3, 4]]))
    model.graph.node.insert(0, helper.make_node("Identity", ["scale"], ["computed"]))
    model.graph.node[3].input[1] = "computed"
    with pytest.raises(ModelError, match="not a constant"):
        to_half(model)


@given(st.floats(1e-12, 400.0), st.integers(-127, 127))
def test_a_weight_keeps_its_value_within_half_a_step(scale: float, integer: int) -> None:
    model = qdq(np.float32([scale, 1.0]), np.array([[integer, 0], [integer, 127]], np.int8))
    after = arrays(to_half(model))
    step = float(after["scale"][0])
    assert step > 0
    assert after["integers"].dtype == np.int8
    meant, said = np.float32(scale) * integer, step * float(after["integers"][0, 0])
    assert abs(meant - said) <= max(0.5 * step, 127 * abs(step - scale) if step < scale else 0.0) * 1.001
    if scale > 8e-6:  # FP16 holds the scale well enough: the integers stay
        np.testing.assert_array_equal(after["integers"], arrays(model)["integers"])


@given(st.floats(0.0, 60000.0))
def test_a_half_scale_is_above_zero_and_exact_in_float16(scale: float) -> None:
    rounded = half_scale(np.float32([scale]))
    assert rounded[0] > 0
    assert rounded.astype(np.float16).astype(np.float32) == rounded
