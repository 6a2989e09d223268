from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnxruntime.quantization import QuantType

from compress.config import Config, TargetConfig, load_config
from compress.engines.auto import AUTO, RECORD, Measured, candidates, choose, measure, table
from compress.engines.base import open_engine
from compress.engines.harness import Interval
from compress.engines.stage import build, retarget
from compress.errors import BackendAbsent, EngineError
from compress.run import Run
from compress.targets import profile

pytest.importorskip("openvino")


class Notes:
    """Progress that remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def track(self, items, what, total=None):  # type: ignore[no-untyped-def]
        yield from items

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def exported(tmp_path: Path) -> Callable[[Path], Run]:
    """Make a run whose stage ``export`` is done."""

    def make(source: Path) -> Run:
        run = Run(tmp_path / "run", progress=Notes())
        run.stage("export", lambda out, _: shutil.copyfile(source, out / "resnet18_int8.onnx"), settings={})
        return run

    return make


def said(run: Run) -> str:
    assert isinstance(run.progress, Notes)
    return "\n".join(run.progress.said)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"stage.json"}


FILES = {
    "onnxruntime": {"resnet18_int8.onnx", "resnet18_int8.onnx.json"},
    "openvino": {"resnet18_int8.xml", "resnet18_int8.bin", "resnet18_int8.xml.json"},
}


def test_the_fastest_stays_alone_and_the_record_says_why(exported: Callable[[Path], Run], int8_onnx: Path) -> None:
    run = exported(int8_onnx)
    build(Config(), run)  # a file of the engine that may lose
    folder = build(Config(), run, engine=AUTO)
    record = json.loads((folder / RECORD).read_text())
    assert [one["engine"] for one in record["measured"]] == ["onnxruntime", "openvino"]
    assert all(one["median_ms"]["value"] > 0 for one in record["measured"])
    ratio = record["measured"][1]["ratio"]
    assert ratio["low"] < ratio["high"]
    assert record["kept"] == ("openvino" if ratio["high"] < 1 else "onnxruntime")
    assert names(folder) == {RECORD, *FILES[record["kept"]]}
    [engine] = [folder / name for name in FILES[record["kept"]] if name.endswith((".onnx", ".xml"))]
    open_engine(engine).close()
    assert "time over onnxruntime" in said(run)
    assert f"kept {record['kept']}" in said(run)

    before = (folder / RECORD).stat().st_mtime_ns
    build(Config(), run, engine=AUTO)
    assert (folder / RECORD).stat().st_mtime_ns == before
    build(Config(), run, engine="onnxruntime")
    assert not (folder / RECORD).exists()


def test_an_engine_that_cannot_be_built_is_told_and_left_out(
    exported: Callable[[Path], Run], quantized: Callable[..., Path]
) -> None:
    signed = quantized("signed_x86", activation_type=QuantType.QInt8, extra_options={"ActivationSymmetric": True})
    run = exported(signed)
    folder = build(Config(), run, engine=AUTO)
    record = json.loads((folder / RECORD).read_text())
    assert (record["kept"], record["measured"]) == ("openvino", [])
    assert "only uint8" in record["left_out"]["onnxruntime"]
    assert names(folder) == {RECORD, *FILES["openvino"]}
    assert "onnxruntime is left out: resnet18_int8.onnx should run in INT8" in said(run)


def test_no_engine_at_all_is_an_error_that_leaves_nothing(
    exported: Callable[[Path], Run], quantized: Callable[..., Path]
) -> None:
    run = exported(quantized("skipped", nodes_to_exclude=["second", "add", "relu2"]))
    with pytest.raises(EngineError, match=r"no engine could be built.*onnxruntime: .*'second'.*openvino: .*'second'"):
        build(Config(), run, engine=AUTO)
    assert not run.folder("build").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_engine_present_is_a_backend_absent(exported: Callable[[Path], Run], int8_onnx: Path) -> None:
    run = exported(int8_onnx)
    with pytest.raises(BackendAbsent, match="no engine for target tensorrt runs on this machine: TensorRT cannot run"):
        build(load_config(None, ["target.name=tensorrt"]), run, engine=AUTO)
    assert not run.folder("build").exists()


def test_the_configured_engine_comes_first() -> None:
    assert candidates(TargetConfig()) == ("onnxruntime", "openvino")
    assert candidates(TargetConfig(name="ort-x86", engine="openvino")) == ("openvino", "onnxruntime")
    assert retarget(TargetConfig(threads=2), AUTO) == TargetConfig(threads=2)


@pytest.mark.skipif(platform.machine() in profile("ort-arm").machines, reason="this is such a processor")
def test_an_engine_for_another_processor_is_left_out(exported: Callable[[Path], Run], int8_onnx: Path) -> None:
    run = exported(int8_onnx)
    with pytest.raises(
        BackendAbsent, match=r"no engine for target ort-arm runs on this machine: .*made for aarch64 or arm64"
    ):
        build(load_config(None, ["target.name=ort-arm"]), run, engine=AUTO)
    assert "onnxruntime is left out: a file for target ort-arm is made for aarch64" in said(run)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_an_engine_without_that_device_is_left_out() -> None:
    progress = Notes()
    with pytest.raises(BackendAbsent, match="no engine for target ort-x86 runs on this machine"):
        candidates(TargetConfig(device="cuda"), progress)
    assert "openvino is left out: the OpenVINO engine runs on the CPU, not on 'cuda'" in progress.said


def test_what_the_harness_says_of_a_broken_engine_is_passed_on(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a network")
    with pytest.raises(EngineError, match=r"could not be measured: .*broken\.onnx"):
        measure({"onnxruntime": broken}, TargetConfig())


values = st.floats(0.1, 10)
ratios = st.tuples(values, values, values).map(lambda bounds: Interval(*(sorted(bounds)[i] for i in (1, 0, 2))))


@given(st.lists(ratios, max_size=4))
def test_the_first_is_kept_unless_another_is_faster_beyond_doubt(others: list[Interval]) -> None:
    one = Interval(1.0, 1.0, 1.0)
    measured = [Measured("first", one, None), *(Measured(f"e{i}", one, ratio) for i, ratio in enumerate(others))]
    kept, _ = choose(measured)
    sure = {f"e{i}": ratio.value for i, ratio in enumerate(others) if ratio.high < 1}
    assert (kept == "first") == (not sure)
    assert kept == "first" or sure[kept] == min(sure.values())


def test_doubts_of_the_harness_are_told() -> None:
    one = Interval(1.0, 0.9, 1.1)
    lines = table([Measured("a", one, None), Measured("b", one, one, ("the machine was not quiet",))])
    assert lines[-1].strip() == "warning: b: the machine was not quiet"
    assert len(lines) == 4
