"""ONNX Runtime under QEMU, where that is there: ``ARM_ROOT`` names an aarch64 file tree with Python in it."""

import os
import platform
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from tiny_resnet import TinyResNet

from benchmarks import arm
from benchmarks.emulation import arm_guest
from benchmarks.emulation.emulate import PROCESSORS, emulate
from calibration.preprocess import Preprocess
from compress.engines.base import infer, open_engine
from compress.engines.metadata import Metadata
from compress.errors import BackendAbsent, EngineError
from compress.export.lower import lower
from compress.export.onnx import export_onnx
from compress.quantize.calibrate import calibrate

ROOT = os.environ.get("ARM_ROOT")
FOREIGN = "cortex-a72" if platform.machine() == "x86_64" else "Haswell"
X86, ARM = (
    [name for name, processor in PROCESSORS.items() if processor.machine == machine]
    for machine in ("x86_64", "aarch64")
)


def has_qemu(machine: str) -> bool:
    return any(shutil.which(name) for name in (f"qemu-{machine}", f"qemu-{machine}-static"))


needs_own_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64" or not has_qemu("x86_64"), reason="no qemu-x86_64, or not an x86 machine"
)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network for ort-x86, as the pipeline quantizes and exports it."""
    torch.manual_seed(0)
    calibrated = calibrate(TinyResNet().eval(), [torch.randn(8, 3, 32, 32)], "ort-x86")
    path = tmp_path_factory.mktemp("exported") / "net_int8.onnx"
    metadata = Metadata("tiny", "int8", Preprocess(32), ("a", "b", "c"), 10, 20, "ort-x86", "0.1.0")
    export_onnx(lower(calibrated.net, calibrated.quantizers), path, metadata, opset=20)
    return path


@pytest.fixture
def full_range(exported: Path, tmp_path: Path) -> Path:
    """The same with every weight of its first convolution raised to 127."""
    model = onnx.load(exported)
    makers = {output: node for node in model.graph.node for output in node.output}
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    name = makers[first.input[1]].input[0]
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    weights.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(weights), 127), name))
    onnx.save(model, tmp_path / "full_range.onnx")
    return tmp_path / "full_range.onnx"


def test_what_is_absent_is_named(
    int8_onnx: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert arm.main(["--engine", str(int8_onnx), "--root", str(tmp_path)]) == 5
    monkeypatch.setenv("PATH", str(tmp_path))
    for cpu, processor in PROCESSORS.items():
        with pytest.raises(BackendAbsent, match=f"qemu-{processor.machine} or .*-static is not installed"):
            emulate(int8_onnx, cpu, images)


@pytest.mark.skipif(not has_qemu(PROCESSORS[FOREIGN].machine), reason="no QEMU of another architecture")
def test_another_architecture_needs_a_file_tree(
    int8_onnx: Path, images: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    assert arm.main(["--engine", str(int8_onnx), "--cpu", FOREIGN]) == 5
    assert "give --root" in capsys.readouterr().err


def test_an_unknown_processor_is_a_usage_error_that_lists_the_known(
    int8_onnx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert arm.main(["--engine", str(int8_onnx), "--cpu", "Haswel"]) == 2
    told = capsys.readouterr().err
    assert all(name in told for name in ("Haswel", *PROCESSORS))


def test_other_engines_are_refused(tmp_path: Path) -> None:
    assert arm.main(["--engine", str(tmp_path / "net.xml")]) == 2


@needs_own_x86
def test_an_emulated_run_that_fails_is_an_error(int8_onnx: Path, images: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "opt/site/onnxruntime").mkdir(parents=True)
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/python3").symlink_to(sys.executable)  # whose library is not in the tree
    with pytest.raises(EngineError, match="the emulated run on Haswell failed with exit code"):
        emulate(int8_onnx, "Haswell", images, tmp_path)


def test_the_emulated_part_computes_what_an_engine_does(int8_onnx: Path, images: np.ndarray) -> None:
    with open_engine(int8_onnx) as engine:
        expected = np.concatenate([infer(engine, image[None]) for image in images])
    assert np.array_equal(arm_guest.run(int8_onnx, ort.SessionOptions(), images), expected)


@needs_own_x86
def test_our_file_is_the_same_on_a_processor_without_vnni(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert arm.main(["--engine", str(exported), "--cpu", "Haswell", "--images", "2"]) == 0
    told, reported = capsys.readouterr()
    assert told == "net_int8.onnx computes what it should on Haswell\n"
    assert "Haswell: 5 QLinearConv" in reported
    assert "adds products in int16; no pair of weights can overflow" in reported
    assert "the same as this machine's own engine, bit for bit" in reported


@needs_own_x86
def test_a_file_that_overflows_is_an_error_that_counts_its_pairs(
    full_range: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert arm.main(["--engine", str(full_range), "--cpu", "Haswell", "--images", "2"]) == 1
    reported = capsys.readouterr().err
    pairs = 16 * 2 * 13  # 16 filters of 27 weights, whose pairs may begin at the first or at the second
    assert f"adds products in int16; {pairs} pairs of weights in 1 layers can overflow" in reported
    assert f"{pairs} pairs of weights in 1 layers can overflow in int16, in which that processor adds" in reported


@pytest.mark.slow
@needs_own_x86
@pytest.mark.parametrize("cpu", X86)
def test_each_processor_is_emulated(exported: Path, cpu: str) -> None:
    image = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    result = emulate(exported, cpu, image)
    assert result.pair_sums == "int16"
    assert result.own is not None
    assert result.own.max_abs == 0


@pytest.mark.slow
@pytest.mark.skipif(not has_qemu("aarch64"), reason="no qemu-aarch64")
@pytest.mark.skipif(ROOT is None, reason="ARM_ROOT names no aarch64 Python")
@pytest.mark.parametrize("cpu", ARM)
def test_the_arm_build_runs_a_good_file_in_integers(int8_onnx: Path, images: np.ndarray, cpu: str) -> None:
    assert ROOT is not None
    result = emulate(int8_onnx, cpu, images, Path(ROOT))
    assert not result.floats
    assert result.operators["QLinearConv"] > 0
    assert result.parity.cosine > 0.99
