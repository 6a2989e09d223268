"""The gate on a whole pipeline in small: a ResNet-8 of 16x16 digits is trained, pruned, quantized and built."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks.evaluation.baseline import Baseline, judge
from benchmarks.evaluation.images import evaluation_split
from benchmarks.evaluation.predictions import predict
from benchmarks.evaluation.regression import INT8, accuracies, answers, costs, kept
from benchmarks.regression import main
from compress.run import Run

CONFIG = """
[run]
name = "tiny"
[model]
arch = "compress.models.cifar:CifarResNet"
args = {depth = 8}
[data]
kind = "digits"
input_size = 16
[train]
epochs = 3
lr = 0.1
flip = false
[prune]
macs = "90%"
multiple = 4
min_width = 4
importance = "norm"
repair = false
depth = false
[finetune]
epochs = 3
flip = false
[quantize]
calibration_images = 40
correction = "none"
method = "minmax"
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline file, made by the command."""
    folder = tmp_path_factory.mktemp("regression")
    config = folder / "tiny.toml"
    config.write_text(CONFIG)
    path = folder / "baseline.json"
    assert main(["--baseline", str(path), "--config", str(config), "--update", "--run", str(folder / "run")]) == 0
    return path


def worse(engine: Path, out: Path, steps: float) -> Path:
    """The engine with noise on the integer weights of its convolutions, of a standard deviation in steps."""
    model, rng = onnx.load(engine), np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4:
            noisy = numpy_helper.to_array(tensor) + np.rint(rng.normal(0, steps, tensor.dims))
            tensor.CopyFrom(numpy_helper.from_array(noisy.clip(-127, 127).astype(np.int8), tensor.name))
    onnx.save(model, out)
    return out


def test_the_same_pipeline_passes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--baseline", str(path), "--run", str(path.parent / "run")]) == 0
    shown = capsys.readouterr().out
    assert "REGRESSION" not in shown
    assert all(name in shown for name in Baseline.read(path).quantities)


@pytest.mark.parametrize(("steps", "fails"), [(0.0, False), (30.0, True)])
def test_a_worse_engine_fails_by_its_accuracy_alone(path: Path, tmp_path: Path, steps: float, fails: bool) -> None:
    known = Baseline.read(path)
    config = known.source.load()
    run, split = Run(path.parent / "run"), evaluation_split(None, config)
    now = answers(config, run, split)
    engine = worse(run.folder("build") / "tiny_int8.onnx", tmp_path / "worse.onnx", steps)
    now = replace(now, int8=predict(engine, split))
    checks = judge(known.quantities, {**accuracies(now, kept(path, split)), **costs(config, run)})
    failed = {one.name for one in checks if not one.passed}
    assert failed == ({INT8, "INT8 minus dense top-1", "INT8 answers as before quantization"} if fails else set())


@pytest.mark.accuracy
def test_a_pipeline_that_forgets_to_fine_tune_exits_3(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path.parent / "run", tmp_path / "run")
    flags = ["--set", "prune.macs=40%", "--set", "finetune.epochs=0"]
    assert main(["--baseline", str(path), "--run", str(tmp_path / "run"), *flags]) == 3


def test_an_update_keeps_tolerances_and_reasons_and_shows_the_difference(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = Baseline.read(path)
    edited = known.quantities[INT8].model_copy(update={"value": 0.5, "tolerance": 0.2, "why": "an experiment"})
    copy = tmp_path / "baseline.json"
    known.model_copy(update={"quantities": {INT8: edited}}).write(copy)
    flags = ["--run", str(path.parent / "run"), "--set", "data.workers=0"]
    assert main(["--baseline", str(copy), "--update", *flags]) == 0
    shown = next(line for line in capsys.readouterr().out.splitlines() if INT8 in line)
    assert "0.5 |" in shown
    assert "+" in shown
    after = Baseline.read(copy)
    assert after.quantities == {INT8: edited.model_copy(update={"value": known.quantities[INT8].value})}
    assert after.source.overrides == ("data.workers=0",)


def test_predictions_that_are_gone_are_told_before_anything_runs(path: Path, tmp_path: Path) -> None:
    shutil.copyfile(path, tmp_path / "baseline.json")
    flags = ["--baseline", str(tmp_path / "baseline.json"), "--run", str(tmp_path / "run")]
    assert main(flags) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [[], ["--update"]])
def test_a_baseline_that_is_not_there_is_usage(flags: list[str], tmp_path: Path) -> None:
    assert main(["--baseline", str(tmp_path / "none.json"), *flags]) == 2
    assert not list(tmp_path.iterdir())
