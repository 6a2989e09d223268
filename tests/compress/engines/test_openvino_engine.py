from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType

from compress.config import TargetConfig
from compress.engines.base import build_engine, engine_files, infer, metadata_of, open_engine
from compress.engines.sidecar import read_sidecar, sidecar_path
from compress.errors import BackendAbsent, EngineError

pytest.importorskip("openvino")


def build(path: Path, out: Path, **target: object) -> Path:
    return build_engine("openvino", path, out, TargetConfig.model_validate({"name": "openvino", **target}))


@pytest.fixture
def built(int8_onnx: Path, tmp_path: Path) -> Path:
    return build(int8_onnx, tmp_path / "build")


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(8, 3, 16, 16)).astype(np.float32)


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_int8_engine_runs_in_int8_and_its_sidecar_says_so(int8_onnx: Path, tmp_path: Path) -> None:
    engine = build(int8_onnx, tmp_path, threads=2, batch=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny_int8.bin", "tiny_int8.xml", "tiny_int8.xml.json"]
    record = read_sidecar(engine)
    assert record is not None
    assert record.operators["Convolution u8"] == 2
    assert not any(name.startswith("Convolution f") for name in record.operators)
    assert (record.engine, record.threads, record.batch, record.device) == ("openvino", 2, 4, "cpu")
    assert record.metadata["compress.precision"] == "int8"


@pytest.mark.parametrize("batch", [1, 8])
def test_engine_computes_what_onnx_runtime_does(built: Path, int8_onnx: Path, images: np.ndarray, batch: int) -> None:
    with open_engine(built) as engine, open_engine(int8_onnx) as reference:
        np.testing.assert_allclose(infer(engine, images[:batch]), infer(reference, images[:batch]), atol=0.02)


def test_float_network_is_not_rounded(float_onnx: Path, tmp_path: Path, images: np.ndarray) -> None:
    path = build(float_onnx, tmp_path)
    record = read_sidecar(path)
    assert record is not None
    assert record.operators["Convolution f32"] == 2
    with open_engine(path) as engine, open_engine(float_onnx) as reference:
        np.testing.assert_allclose(infer(engine, images), infer(reference, images), rtol=1e-5, atol=1e-5)


def test_opened_engine_describes_itself(built: Path, int8_onnx: Path) -> None:
    with open_engine(built, threads=2) as engine, open_engine(int8_onnx) as reference:
        assert (engine.inputs, engine.outputs) == (reference.inputs, reference.outputs)
        assert engine.metadata == reference.metadata
        assert engine.requested == engine.provider == "CPU"
        assert (engine.modes["streams"], engine.modes["float_precision"], engine.modes["pinning"]) == (1, "f32", False)
        assert engine.max_batch is None


def test_outputs_are_the_callers_to_keep(built: Path, images: np.ndarray) -> None:
    with open_engine(built) as engine:
        first = infer(engine, images)
        before = first.copy()
        infer(engine, -images)
        np.testing.assert_array_equal(first, before)


def test_wrong_feeds_are_refused_in_words(built: Path, images: np.ndarray) -> None:
    with open_engine(built) as engine:
        for feeds, message in [
            ({}, "'input' is missing"),
            ({"input": images[:, :, :8]}, "float32 8x3x8x16"),
            ({"input": images.astype(np.float64)}, "float64"),
            ({"input": images, "mask": images}, "unknown input 'mask'"),
        ]:
            with pytest.raises(EngineError, match=message):
                engine.run(feeds)


def test_layer_that_was_not_quantized_is_named(quantized: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"1 convolution.*'second'.*its weight is not quantized"):
        build(quantized("skipped", nodes_to_exclude=["second", "add", "relu2"]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_named_as_other_exporters_name_layers(quantized: Callable[..., Path], tmp_path: Path) -> None:
    model = onnx.load(quantized("skipped", nodes_to_exclude=["second", "add", "relu2"]))
    next(node for node in model.graph.node if node.name == "second").name = "/layer1/second/Conv"
    onnx.save(model, tmp_path / "slashes.onnx")
    with pytest.raises(EngineError, match="'/layer1/second/Conv': its weight is not quantized"):
        build(tmp_path / "slashes.onnx", tmp_path / "build")


def test_layer_that_is_meant_to_stay_float_may(quantized: Callable[..., Path], tmp_path: Path) -> None:
    model = onnx.load(quantized("skipped", nodes_to_exclude=["second", "add", "relu2"]))
    next(tensor for tensor in model.graph.initializer if tensor.name == "w2").name = "second.weight"
    next(node for node in model.graph.node if node.name == "second").input[1] = "second.weight"
    known = metadata_of({entry.key: entry.value for entry in model.metadata_props}, tmp_path)
    assert known is not None
    meant = replace(known, float_layers=("second",))
    onnx.helper.set_model_props(model, meant.to_props())
    onnx.save(model, tmp_path / "meant.onnx")
    record = read_sidecar(build(tmp_path / "meant.onnx", tmp_path))
    assert record is not None
    assert (record.operators["Convolution u8"], record.operators["Convolution f32"]) == (1, 1)


def test_int8_activations_run_in_integers_too(quantized: Callable[..., Path], tmp_path: Path) -> None:
    options = {"activation_type": QuantType.QInt8, "extra_options": {"ActivationSymmetric": True}}
    record = read_sidecar(build(quantized("signed", target="openvino", **options), tmp_path))
    assert record is not None
    assert sum(count for name, count in record.operators.items() if name in ("Convolution u8", "Convolution i8")) == 2


def test_file_quantized_for_another_engine_is_refused(quantized: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="tensorrt, which openvino does not run"):
        build(quantized("elsewhere", target="tensorrt"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_weights_are_named(built: Path) -> None:
    built.with_suffix(".bin").unlink()
    with pytest.raises(EngineError, match=r"no such engine file: .*tiny_int8\.bin"):
        open_engine(built)


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
def test_either_file_changed_is_refused_unless_trusted(built: Path, suffix: str) -> None:
    if suffix == ".xml":
        built.write_text(built.read_text() + "\n")
    else:
        flip_last_byte(built.with_suffix(suffix))
    with pytest.raises(EngineError, match=r"SHA-256 differs[\s\S]*--trust"):
        open_engine(built)
    open_engine(built, trust=True).close()


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_truncated_file_without_a_sidecar(built: Path, suffix: str, share: float) -> None:
    sidecar_path(built).unlink()
    broken = built.with_suffix(suffix)
    broken.write_bytes(broken.read_bytes()[: int(broken.stat().st_size * share)])
    with pytest.raises(EngineError, match=r"cannot load .*tiny_int8\.xml: \w+"):
        open_engine(built)


def test_truncated_onnx_file_leaves_nothing(int8_onnx: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(int8_onnx.read_bytes()[:-500])
    with pytest.raises(EngineError, match=r"cannot load .*broken\.onnx"):
        build(broken, tmp_path / "build")
    assert list((tmp_path / "build").iterdir()) == []


def test_foreign_file_opens_without_metadata_or_sidecar(float_onnx: Path, tmp_path: Path, images: np.ndarray) -> None:
    model = onnx.load(float_onnx)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    path = build(tmp_path / "foreign.onnx", tmp_path)
    sidecar_path(path).unlink()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in engine_files(path):
        shutil.move(file, moved / file.name)
    with open_engine(moved / path.name) as engine:
        assert engine.metadata is None
        assert infer(engine, images).shape == (8, 3)


def test_without_the_package_the_extra_is_named(
    int8_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # what the import system makes of a package that is not there
    with pytest.raises(BackendAbsent, match=r"\[openvino\]") as caught:
        build(int8_onnx, tmp_path / "build")
    assert caught.value.exit_code == 5
    assert not (tmp_path / "build").exists()


def test_importing_it_sends_nothing_and_writes_nothing(tmp_path: Path) -> None:
    home = {key: value for key, value in os.environ.items() if key not in ("CI", "TF_BUILD", "JENKINS_URL")}
    told = """
from compress.engines.openvino import runtime
runtime()
import os, openvino_telemetry
print(openvino_telemetry.Telemetry().consent, "CI" in os.environ)
"""
    done = subprocess.run(
        [sys.executable, "-c", told], env={**home, "HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]
    assert list(tmp_path.iterdir()) == []


def test_only_the_cpu(built: Path) -> None:
    with pytest.raises(EngineError, match="runs on the CPU, not on 'cuda'"):
        open_engine(built, device="cuda")
