from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from compress.config import Config, load_config
from compress.engines.stage import build
from compress.errors import BackendAbsent, EngineError, PipelineError
from compress.run import Run


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
