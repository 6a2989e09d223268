from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

from compress.config import TargetConfig
from compress.engines.base import BackendModule, backend, build_engine, infer, open_engine
from compress.errors import EngineError
from compress.registries import BACKENDS


@pytest.fixture
def batch() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_provides_what_the_protocol_says(name: str) -> None:
    for function in ("require", "open_engine", "build"):
        wanted = list(inspect.signature(getattr(BackendModule, function)).parameters)[1:]
        assert list(inspect.signature(getattr(backend(name), function)).parameters) == wanted


def test_unknown_suffix_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "net.tflite").touch()
    with pytest.raises(EngineError, match=r"\.onnx \(onnxruntime\), \.xml \(openvino\), \.plan \(tensorrt\)"):
        open_engine(tmp_path / "net.tflite")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such engine file"):
        open_engine(tmp_path / "net.onnx")
    with pytest.raises(EngineError, match="compress export"):
        build_engine("onnxruntime", tmp_path / "net.onnx", tmp_path, TargetConfig())


def test_unknown_engine(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="known: onnxruntime, openvino, tensorrt"):
        build_engine("coreml", tmp_path / "net.onnx", tmp_path, TargetConfig())


def test_opened_engine_describes_itself(float_onnx: Path, batch: np.ndarray) -> None:
    with open_engine(float_onnx, threads=2) as engine:
        assert [str(spec) for spec in engine.inputs] == ["input: float32 Nx3x16x16"]
        assert [str(spec) for spec in engine.outputs] == ["logits: float32 Nx3"]
        assert engine.metadata is not None
        assert engine.metadata.classes == ("a", "b", "c")
        assert engine.requested == engine.provider == "CPUExecutionProvider"
        assert engine.modes["intra_op_threads"] == 2
        assert infer(engine, batch).shape == (2, 3)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "'input' is missing"),
        ({"input": np.zeros((1, 3, 8, 16), np.float32)}, "float32 1x3x8x16"),
        ({"input": np.zeros((1, 3, 16, 16))}, "float64"),
        ({"input": np.zeros((1, 3, 16, 16), np.float32), "mask": np.zeros(1)}, "unknown input 'mask'"),
    ],
)
def test_wrong_feeds_are_refused_in_words(float_onnx: Path, feeds: dict[str, np.ndarray], message: str) -> None:
    with open_engine(float_onnx) as engine, pytest.raises(EngineError, match=message):
        engine.run(feeds)
