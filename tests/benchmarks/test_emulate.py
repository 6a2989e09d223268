"""The aarch64 build of ONNX Runtime under QEMU, where both are there: ``ARM_ROOT`` names the aarch64 file tree."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from benchmarks import arm, arm_guest
from compress.engines.base import infer, open_engine
from compress.errors import BackendAbsent, EngineError

ROOT = os.environ.get("ARM_ROOT")
needs_qemu = pytest.mark.skipif(shutil.which(arm.QEMU) is None, reason=f"no {arm.QEMU}")


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)


def test_what_is_absent_is_named(
    int8_onnx: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert arm.main(["--engine", str(int8_onnx), "--root", str(tmp_path)]) == 5
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendAbsent, match=f"{arm.QEMU} is not installed"):
        arm.emulate(int8_onnx, tmp_path, "cortex-a72", images)


@needs_qemu
def test_an_emulated_run_that_fails_is_an_error(int8_onnx: Path, images: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "opt/site/onnxruntime").mkdir(parents=True)
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/python3").symlink_to(sys.executable)  # of this machine, not aarch64
    with pytest.raises(EngineError, match="the emulated run on cortex-a72 ended with"):
        arm.emulate(int8_onnx, tmp_path, "cortex-a72", images)


def test_the_emulated_part_computes_what_an_engine_does(int8_onnx: Path, images: np.ndarray) -> None:
    with open_engine(int8_onnx) as engine:
        expected = np.concatenate([infer(engine, image[None]) for image in images])
    assert np.array_equal(arm_guest.run(int8_onnx, ort.SessionOptions(), images), expected)


@pytest.mark.slow
@needs_qemu
@pytest.mark.skipif(ROOT is None, reason="ARM_ROOT names no aarch64 Python")
@pytest.mark.parametrize("core", arm.CORES)
def test_the_arm_build_runs_a_good_file_in_integers(int8_onnx: Path, images: np.ndarray, core: str) -> None:
    assert ROOT is not None
    result = arm.emulate(int8_onnx, Path(ROOT), core, images)
    assert not result.floats
    assert result.operators["QLinearConv"] > 0
    assert result.parity.cosine > 0.99
