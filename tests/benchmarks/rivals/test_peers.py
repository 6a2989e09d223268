from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

from benchmarks.evaluation.images import calibration_split, evaluation_split
from benchmarks.rivals.peers import PEERS, load
from benchmarks.rivals.peers.__main__ import main
from benchmarks.rivals.peers.ort_static import activation_bytes, stride
from benchmarks.rivals.peers.source import Images, read
from compress.engines.base import Array, infer, open_engine
from compress.engines.openvino import runtime
from compress.errors import BackendAbsent, ConfigError, EngineError


@pytest.fixture(scope="module")
def images(float_onnx: Path) -> Images:
    split = calibration_split("digits")
    return Images(split.subset(range(24), "calibration"), read(float_onnx).metadata.preprocess)


def written(name: str, source: Path, images: Images, folder: Path) -> Path:
    """The INT8 file that a peer makes of ``source``."""
    path = folder / f"tiny{PEERS[name].suffix}"
    load(name)(read(source), images, path)
    return path


def exact_logits(path: Path, x: Array) -> Array:
    """What the numbers in an INT8 file say, computed in float: integer sums saturate on some processors."""
    if path.suffix == ".onnx":
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # every Q/DQ stays what it is
        return np.asarray(ort.InferenceSession(path, options).run(None, {"input": x})[0])
    core = runtime().Core()
    from openvino.passes import ConstantFolding, Manager

    model, manager = core.read_model(path), Manager()
    manager.register_pass(ConstantFolding())  # the weights become floats, which no integer kernel takes
    manager.run_passes(model)
    return np.asarray(core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)[0])


def integer_weights(path: Path) -> list[Array]:
    """Those of the convolution and of the fully connected layer, as the file holds them."""
    if path.suffix == ".onnx":
        arrays = [numpy_helper.to_array(array) for array in onnx.load(path).graph.initializer]
    else:
        nodes = runtime().Core().read_model(path).get_ordered_ops()
        arrays = [node.data for node in nodes if node.get_type_name() == "Constant"]
    return sorted((a for a in arrays if a.dtype.itemsize == 1 and a.ndim > 1), key=lambda a: -a.ndim)


@pytest.fixture(scope="module")
def x(images: Images) -> Array:
    """Images that no peer has seen."""
    split = evaluation_split("digits").subset(range(200), "eval")
    return next(iter(Images(split, images.preprocess, batch_size=200))).numpy()


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_writes_an_int8_file_that_answers_like_fp32(
    name: str, float_onnx: Path, images: Images, x: Array, tmp_path: Path
) -> None:
    path = written(name, float_onnx, images, tmp_path)
    with open_engine(path) as engine, open_engine(float_onnx) as floats:
        assert engine.metadata is not None
        assert engine.metadata.precision == "int8"
        assert engine.name in (engine.metadata.target, "onnxruntime")
        assert np.isfinite(infer(engine, x)).all()
        answers = infer(floats, x).argmax(1)
    assert (b"FakeQuantize" if path.suffix == ".xml" else b"QuantizeLinear") in path.read_bytes()
    assert np.mean(exact_logits(path, x).argmax(1) == answers) > 0.95


@pytest.mark.parametrize("name", ["ort_reduce_range", "ort_u8u8", "nncf_openvino_fix"])
def test_what_is_meant_for_processors_without_vnni_runs_exactly_on_any(
    name: str, float_onnx: Path, images: Images, x: Array, tmp_path: Path
) -> None:
    path = written(name, float_onnx, images, tmp_path)
    exact = exact_logits(path, x)
    with open_engine(path) as engine:
        error = infer(engine, x) - exact
    assert np.abs(error).max() < 1.01 * np.ptp(exact) / 255  # a step of ONNX Runtime's INT8 logits


@pytest.mark.parametrize(
    ("name", "largest"),
    [
        ("ort_minmax", [127, 127]),
        ("ort_reduce_range", [64, 64]),
        ("nncf_onnx", [64, 127]),
        ("nncf_openvino", [63, 127]),
        ("nncf_openvino_fix", [63, 63]),
        ("nncf_openvino_nofix", [127, 127]),
    ],
)
def test_weights_take_the_range_that_the_name_says(
    name: str, largest: list[int], float_onnx: Path, images: Images, tmp_path: Path
) -> None:
    weights = integer_weights(written(name, float_onnx, images, tmp_path))
    assert {array.dtype.name for array in weights} == {"int8"}
    found = [np.abs(array.astype(int)).max() for array in weights]
    assert np.abs(np.subtract(found, largest)).max() <= 1  # a weight half-way between two steps rounds either way


def test_u8u8_weights_are_unsigned_about_one_zero_point(float_onnx: Path, images: Images, tmp_path: Path) -> None:
    path = written("ort_u8u8", float_onnx, images, tmp_path)
    assert {array.dtype.name for array in integer_weights(path)} == {"uint8"}
    points = {array.name: numpy_helper.to_array(array) for array in onnx.load(path).graph.initializer}
    assert (points["w2_zero_point"].dtype, set(points["w2_zero_point"])) == (np.uint8, {128})


def test_default_is_what_quantize_static_does_when_nothing_is_asked(
    float_onnx: Path, images: Images, tmp_path: Path
) -> None:
    own = {name: parameter.default for name, parameter in inspect.signature(quantize_static).parameters.items()}
    assert (own["activation_type"], own["weight_type"]) == (QuantType.QInt8, QuantType.QInt8)
    assert (own["per_channel"], own["reduce_range"]) == (False, False)
    assert (own["quant_format"], own["calibrate_method"]) == (QuantFormat.QDQ, CalibrationMethod.MinMax)
    arrays = onnx.load(written("ort_default", float_onnx, images, tmp_path)).graph.initializer
    found = {array.name: numpy_helper.to_array(array) for array in arrays}
    assert found["input_zero_point"].dtype == found["w2_quantized"].dtype == np.int8
    assert found["w2_scale"].size == 1
    assert np.abs(found["w2_quantized"].astype(int)).max() == 127


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
    monkeypatch.delitem(sys.modules, "benchmarks.rivals.peers.nncf_openvino", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendAbsent, match="needs openvino") as caught:
        load("nncf_openvino")
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    "imports",
    [
        "from benchmarks.rivals.peers import load; load('nncf_openvino')",
        "from benchmarks.rivals import quantization_step as q; "
        "q.run(q.Job('ort-x86', q.Path(), q.Path(), 'digits', 1, 0), q.Path())",
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
