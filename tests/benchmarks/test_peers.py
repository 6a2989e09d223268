from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.accuracy import compare, predict
from benchmarks.images import calibration_split, evaluation_split
from benchmarks.peers import PEERS, load
from benchmarks.peers.__main__ import main
from benchmarks.peers.ort_static import activation_bytes, stride
from benchmarks.peers.source import Images, read
from compress.engines.base import open_engine
from compress.errors import BackendAbsent, ConfigError, EngineError


@pytest.fixture(scope="module")
def images(float_onnx: Path) -> Images:
    split = calibration_split("digits")
    return Images(split.subset(range(24), "calibration"), read(float_onnx).metadata.preprocess)


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_writes_an_int8_file_that_answers_like_fp32(
    name: str, float_onnx: Path, images: Images, tmp_path: Path
) -> None:
    path = tmp_path / f"tiny{PEERS[name].suffix}"
    load(name)(read(float_onnx), images, path)
    with open_engine(path) as engine:
        assert engine.metadata is not None
        assert engine.metadata.precision == "int8"
        assert engine.name in (engine.metadata.target, "onnxruntime")
    assert (b"FakeQuantize" if path.suffix == ".xml" else b"QuantizeLinear") in path.read_bytes()
    split = evaluation_split("digits").subset(range(200), "eval")
    assert compare(predict(path, split), predict(float_onnx, split)).agreement > 0.95


def test_the_same_images_give_the_same_file(float_onnx: Path, images: Images, tmp_path: Path) -> None:
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for path in paths:
        load("ort_percentile")(read(float_onnx), images, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_images_come_again_at_every_iteration(images: Images) -> None:
    first, second = ([x.numpy() for x in images] for _ in range(2))
    assert len(first) == len(images) == 24
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(second))


@given(st.integers(1, 400), st.integers(1, 10**11))
def test_stride_divides_the_batches_and_keeps_within_memory(batches: int, batch_bytes: int) -> None:
    held = stride(batches, batch_bytes)
    assert batches % held == 0
    assert held == 1 or held * batch_bytes <= 10e9


def test_activations_are_counted_from_the_shapes(float_onnx: Path) -> None:
    graph = onnx.shape_inference.infer_shapes(onnx.load(float_onnx)).graph
    assert activation_bytes(graph) == 4 * (64 + 64 + 10)  # pooled, flat, logits


def test_unknown_peer_names_the_known() -> None:
    with pytest.raises(ConfigError, match="ort_minmax, ort_entropy"):
        load("ort_min")


def test_peer_without_its_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "benchmarks.peers.nncf_openvino", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendAbsent, match="needs openvino") as caught:
        load("nncf_openvino")
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    "imports",
    [
        "from benchmarks.peers import load; load('nncf_openvino')",
        "from benchmarks.quantization_step import *; run(Job('ort-x86', Path(), Path(), 'digits', 1, 0), Path())",
    ],
    ids=["peer", "ours"],
)
def test_nothing_is_sent_to_the_makers_of_the_libraries(imports: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    told = f"""
import contextlib, os
from pathlib import Path
from compress.errors import PipelineError
with contextlib.suppress(PipelineError):  # there is no such network; the libraries are imported before it is read
    {imports}
import openvino_telemetry
from nncf.telemetry.wrapper import NNCFTelemetry, telemetry
print(openvino_telemetry.Telemetry().consent, isinstance(telemetry, NNCFTelemetry), "CI" in os.environ)
"""
    asked = {key: value for key, value in os.environ.items() if key not in ("CI", "NNCF_CI", "TF_BUILD", "JENKINS_URL")}
    done = subprocess.run(
        [sys.executable, "-c", told], env={**asked, "HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False", "False"]
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_our_fp32_are_refused(float_onnx: Path, int8_onnx: Path, tmp_path: Path) -> None:
    foreign = onnx.load(float_onnx)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    (tmp_path / "cut.onnx").write_bytes(float_onnx.read_bytes()[:500])
    for path in (tmp_path / "foreign.onnx", int8_onnx):
        with pytest.raises(EngineError, match="not an FP32 file of this package"):
            read(path)
    with pytest.raises(EngineError, match="not a whole ONNX file"):
        read(tmp_path / "cut.onnx")
    with pytest.raises(EngineError, match="no such ONNX file"):
        read(tmp_path / "gone.onnx")


def test_file_of_another_form_exits_2(float_onnx: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nncf_openvino", "--fp32", str(float_onnx), "--data", "digits", "--out", "a.onnx"]) == 2
    assert "writes .xml files" in capsys.readouterr().err
