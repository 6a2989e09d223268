from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType

from compress.config import TargetConfig
from compress.engines.base import build_engine, infer, open_engine
from compress.engines.onnxruntime import operator_counts, optimized_graph
from compress.engines.sidecar import read_sidecar
from compress.errors import BackendAbsent, EngineError
from compress.export.half import to_half
from compress.files import file_sha256
from compress.targets import profile


def build(path: Path, out: Path, **target: object) -> Path:
    return build_engine("onnxruntime", path, out, TargetConfig.model_validate(target))


def test_int8_engine_runs_and_its_sidecar_tells_what_it_is(int8_onnx: Path, tmp_path: Path) -> None:
    engine = build(int8_onnx, tmp_path, threads=2, batch=4)
    record = read_sidecar(engine)
    assert record is not None
    assert record.operators["QLinearConv"] == 2
    assert record.operators["QLinearAdd"] == 1
    assert "Conv" not in record.operators
    assert (record.sha256, record.parent_sha256) == (file_sha256(engine), file_sha256(int8_onnx))
    assert (record.threads, record.batch, record.device) == (2, 4, "cpu")
    assert record.metadata["compress.precision"] == "int8"


def test_engine_computes_what_the_exported_file_does(int8_onnx: Path, float_onnx: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(2).normal(size=(8, 3, 16, 16)).astype(np.float32)
    outputs = []
    for path in (build(int8_onnx, tmp_path), int8_onnx, float_onnx):
        with open_engine(path) as engine:
            outputs.append(infer(engine, x))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_allclose(outputs[0], outputs[2], atol=0.1)


def test_float_network_builds_without_the_int8_check(float_onnx: Path, tmp_path: Path) -> None:
    record = read_sidecar(build(float_onnx, tmp_path))
    assert record is not None
    assert any(name in record.operators for name in ("Conv", "FusedConv"))


def test_layer_that_was_not_quantized_is_named(quantized: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"'second'.*its weight is not quantized"):
        build(quantized("skipped", nodes_to_exclude=["second", "add", "relu2"]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_int8_activations_after_relu_are_explained(quantized: Callable[..., Path], tmp_path: Path) -> None:
    signed = quantized("signed", activation_type=QuantType.QInt8, extra_options={"ActivationSymmetric": True})
    with pytest.raises(EngineError, match=r"'second'.*only uint8 with zero point 0 fuses"):
        build(signed, tmp_path)


def test_file_quantized_for_another_engine_is_refused(quantized: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="for target tensorrt, which onnxruntime does not run"):
        build(quantized("elsewhere", target="tensorrt"), tmp_path)


def test_layer_that_is_meant_to_stay_float_and_does_not_is_named(unfenced: Path, tmp_path: Path) -> None:
    with pytest.raises(
        EngineError, match=r"1 convolution\(s\) in float, but 1 of them run in integers, first 'second'"
    ):
        build(unfenced, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_layer_that_is_meant_to_stay_float_and_does(unfenced: Path, tmp_path: Path) -> None:
    model = onnx.load(unfenced)
    conv = next(node for node in model.graph.node if node.name == "second")
    fence = onnx.helper.make_node("Clip", [conv.input[0], "low", "high"], ["fenced"], name="fence")
    for name, bound in (("low", -100.0), ("high", 100.0)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(bound), name))
    model.graph.node.insert(list(model.graph.node).index(conv), fence)
    conv.input[0] = "fenced"
    onnx.save(model, tmp_path / "fenced.onnx")
    record = read_sidecar(build(tmp_path / "fenced.onnx", tmp_path / "build"))
    assert record is not None
    assert record.operators["QLinearConv"] == 1
    assert sum(record.operators.get(name, 0) for name in ("Conv", "FusedConv")) == 1


def test_the_remedy_names_the_target_of_the_file(quantized: Callable[..., Path], tmp_path: Path) -> None:
    path = quantized("skipped", nodes_to_exclude=["second", "add", "relu2"])
    with pytest.raises(EngineError) as caught:
        build(path, tmp_path)
    assert f"lint {path} --target ort-x86" in str(caught.value)


@pytest.mark.skipif(platform.machine() in profile("ort-arm").machines, reason="this is such a processor")
def test_file_for_another_processor_is_refused_with_the_way_to_check_it(
    quantized: Callable[..., Path], tmp_path: Path
) -> None:
    arm = quantized("arm", target="ort-arm", activation_type=QuantType.QInt8)
    with pytest.raises(BackendAbsent, match=r"made for aarch64 or arm64.*\n?.*benchmarks\.arm --engine") as caught:
        build(arm, tmp_path)
    assert caught.value.exit_code == 5
    assert list(tmp_path.iterdir()) == []
    open_engine(arm).close()


def test_float16_file_is_evaluated_right(quantized: Callable[..., Path], tmp_path: Path) -> None:
    form = {"ActivationSymmetric": True, "QuantizeBias": False}  # float biases, as in what we export
    single = onnx.load(quantized("single", target="tensorrt", activation_type=QuantType.QInt8, extra_options=form))
    scale = next(tensor for tensor in single.graph.initializer if tensor.name == "w2_scale")
    # So small that its product with the scale of the input is 0 in float16: a bias in such steps has no value.
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(1e-4), scale.name))
    half = tmp_path / "half.onnx"
    onnx.save(single, tmp_path / "single.onnx")
    onnx.save(to_half(single), half)
    x = np.random.default_rng(2).normal(size=(8, 3, 16, 16)).astype(np.float32)
    with open_engine(half) as engine, open_engine(tmp_path / "single.onnx") as reference:
        assert engine.modes["graph_optimization"] == "all but WeightBiasQuantization"
        want = infer(reference, x)
        assert np.linalg.norm(infer(engine, x) - want) < 0.05 * np.linalg.norm(want)
    assert "QLinearConv" not in operator_counts(optimized_graph(half))


def test_truncated_file(int8_onnx: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(int8_onnx.read_bytes()[:-500])
    with pytest.raises(EngineError, match="cannot load"):
        open_engine(broken)


def test_foreign_file_opens_without_metadata(float_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(float_onnx)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with open_engine(tmp_path / "foreign.onnx") as engine:
        assert engine.metadata is None


def test_damaged_metadata_is_an_error(float_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(float_onnx)
    onnx.helper.set_model_props(model, {"compress.arch": "tiny"})
    onnx.save(model, tmp_path / "damaged.onnx")
    with pytest.raises(EngineError, match="metadata"):
        open_engine(tmp_path / "damaged.onnx")


def test_a_provider_that_is_not_installed_is_never_replaced_in_silence(float_onnx: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(BackendAbsent, match="CUDAExecutionProvider") as caught:
        open_engine(float_onnx, device="cuda")
    assert caught.value.exit_code == 5
