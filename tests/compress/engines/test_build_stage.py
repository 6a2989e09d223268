from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress.config import Config, load_config
from compress.engines.stage import build
from compress.errors import BackendAbsent, EngineError, PipelineError
from compress.run import Run
from compress.targets import profile


@pytest.fixture
def run(tmp_path: Path, int8_onnx: Path) -> Run:
    """A run whose stage ``export`` is done."""
    run = Run(tmp_path / "run")

    def work(out: Path, scratch: Path) -> None:
        shutil.copyfile(int8_onnx, out / "resnet18_int8.onnx")

    run.stage("export", work, settings={})
    return run


def test_builds_the_configured_engine_once(run: Run) -> None:
    folder = build(Config(), run)
    record = json.loads((folder / "resnet18_int8.onnx.json").read_text())
    assert record["operators"]["QLinearConv"] == 2
    before = (folder / "resnet18_int8.onnx").stat().st_mtime_ns
    assert build(Config(), run) == folder
    assert (folder / "resnet18_int8.onnx").stat().st_mtime_ns == before


def test_engines_of_the_same_file_stay_and_those_of_an_earlier_one_go(run: Run, quantized: Callable[..., Path]) -> None:
    pytest.importorskip("openvino")
    build(Config(), run)
    (run.folder("build") / "tensorrt.timing").write_bytes(b"timings")
    (run.folder("build") / "note.txt").write_text("not ours")
    (run.folder("build") / "unknown.onnx").write_bytes(b"no sidecar")
    ours = ["resnet18_int8.bin", "resnet18_int8.onnx", "resnet18_int8.onnx.json", "resnet18_int8.xml"]
    ours += ["resnet18_int8.xml.json", "stage.json", "tensorrt.timing"]
    folder = build(Config(), run, engine="openvino")
    assert sorted(path.name for path in folder.iterdir()) == ours

    again = quantized("again", per_channel=False)
    run.stage("export", lambda out, _: shutil.copyfile(again, out / "resnet18_int8.onnx"), settings={"anew": True})
    folder = build(Config(), run)
    assert sorted(path.name for path in folder.iterdir()) == [ours[1], ours[2], "stage.json", "tensorrt.timing"]


@pytest.mark.parametrize("damage", ["weights", "sidecar"])
def test_a_damaged_earlier_engine_is_no_obstacle(run: Run, damage: str) -> None:
    pytest.importorskip("openvino")
    weights = build(Config(), run, engine="openvino") / "resnet18_int8.bin"
    if damage == "weights":
        weights.unlink()
    else:
        weights.with_name("resnet18_int8.xml.json").write_text("{")
    folder = build(Config(), run)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".json", ".onnx"]


@pytest.mark.skipif(platform.machine() in profile("ort-arm").machines, reason="this is such a processor")
def test_a_target_for_another_processor_is_absent_and_leaves_nothing(run: Run) -> None:
    with pytest.raises(BackendAbsent, match="made for aarch64 or arm64, this machine is"):
        build(load_config(None, ["target.name=ort-arm"]), run)
    assert sorted(path.name for path in run.directory.iterdir()) == ["export"]


def test_needs_the_export(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="'export' has not run"):
        build(Config(), Run(tmp_path))


def test_other_engine_by_name_is_known_or_refused(run: Run) -> None:
    with pytest.raises(EngineError, match="unknown engine 'coreml'"):
        build(Config(), run, engine="coreml")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("how", ["argument", "config"])
def test_without_a_gpu_tensorrt_is_absent_and_leaves_nothing(run: Run, how: str) -> None:
    config = load_config(None, ["target.engine=tensorrt"] if how == "config" else [])
    with pytest.raises(BackendAbsent, match="an NVIDIA GPU") as caught:
        build(config, run, engine="tensorrt" if how == "argument" else None)
    assert caught.value.exit_code == 5
    assert sorted(path.name for path in run.directory.iterdir()) == ["export"]
