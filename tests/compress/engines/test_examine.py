"""A file from elsewhere that crashes, hangs or fills the memory of its runtime is an error of that file."""

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from compress.engines import examine as room
from compress.engines.examine import examine
from compress.errors import EngineError


def written(path: Path, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> Path:
    """An ONNX file without inputs that gives ``y``."""
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [], [output], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def zeros(path: Path, side: int) -> Path:
    """A file of some hundred bytes that makes ``side`` x ``side`` zeros."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [side, side])
    return written(path, [helper.make_node("ConstantOfShape", ["shape"], ["y"])], [shape])


def endless(path: Path) -> Path:
    """A file that counts to 2^62."""
    count = helper.make_tensor("count", TensorProto.INT64, [], [2**62])
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    start = helper.make_tensor("start", TensorProto.FLOAT, [], [0.0])
    values = {"i": TensorProto.INT64, "c": TensorProto.BOOL, "x": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info(name, kind, []) for name, kind in values.items()]
    outputs = [helper.make_tensor_value_info(name, values[name[0]], []) for name in ("c1", "x1")]
    steps = [helper.make_node("Identity", ["c"], ["c1"]), helper.make_node("Neg", ["x"], ["x1"])]
    body = helper.make_graph(steps, "body", inputs, outputs)
    return written(path, [helper.make_node("Loop", ["count", "yes", "start"], ["y"], body=body)], [count, yes, start])


def test_an_ordinary_file_is_let_pass(tmp_path: Path) -> None:
    examine(zeros(tmp_path / "small.onnx", 2))


@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_an_ordinary_error_is_left_to_the_one_who_opens_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    examine(path)
    examine(tmp_path / "gone.onnx")
    examine(tmp_path / "other.plan")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit on memory may not hold")
def test_a_hunger_for_memory_is_an_error_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"big\.onnx took more than 4096 MiB of memory"):
        examine(zeros(tmp_path / "big.onnx", 100_000))


def test_a_hang_is_an_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PROCESSOR_S", 4)
    with pytest.raises(EngineError, match=r"endless\.onnx took more than 4 s of processor time"):
        examine(endless(tmp_path / "endless.onnx"))


def test_a_crash_is_an_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime of this version that crashes on a file may be mended in the next: so the crash itself is made."""
    crash = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"]
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda _, **how: real(crash, **how))
    with pytest.raises(EngineError, match=r"small\.onnx crashed the process that opened it \(SIGSEGV\)"):
        examine(zeros(tmp_path / "small.onnx", 2))
