from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType

from compress.config import TargetConfig
from compress.engines.base import build_engine, infer, open_engine
from compress.engines.sidecar import read_sidecar
from compress.errors import BackendAbsent, EngineError
from compress.run import file_sha256


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
