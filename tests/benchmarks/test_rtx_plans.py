"""Plans of TensorRT for RTX where there is no GPU: what each command says, and what the summary measures instead."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from benchmarks import accuracy, deploy, latency, predict
from benchmarks.evaluation import pareto
from benchmarks.evaluation.summary import networks, summarize, write
from benchmarks.nodes.profile import check
from benchmarks.reporting.rows import remarks
from benchmarks.results.networks import SummaryFile
from benchmarks.selfcheck.abilities import abilities
from benchmarks.timing.presets import PRESETS
from benchmarks.timing.worker import Settings
from calibration.preprocess import Preprocess
from compress.config import Config, TargetConfig
from compress.engines.base import build_engine
from compress.engines.metadata import Metadata
from compress.engines.sidecar import sidecar_path
from compress.engines.stage import build
from compress.errors import BackendAbsent, EngineError
from compress.models.registry import build as build_net
from compress.parse import read
from compress.probes.template import make_template
from compress.run import Run

pytestmark = [
    pytest.mark.usefixtures("rtx"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here"),
]
PREPROCESS = Preprocess(size=64, mean=(0.5,) * 3, std=(0.5,) * 3)
METADATA = Metadata("tiny", "fp32", PREPROCESS, tuple("0123456789"), 3_000_000, 12_345, "", "0.1.0")
TARGET = TargetConfig.model_validate({"engine": "tensorrt-rtx"})
ABSENT = "TensorRT for RTX cannot run on this machine: missing an NVIDIA GPU that torch can see"
COMMANDS: dict[str, Callable[[Path], int]] = {
    "latency": lambda plan: latency.main(["--engine", str(plan)]),
    "accuracy": lambda plan: accuracy.main(["--engine", str(plan), "--data", "digits"]),
    "predict": lambda plan: predict.main(["photo.png", "--engine", str(plan)]),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An INT8 file for TensorRT for RTX."""
    torch.manual_seed(0)
    net = build_net("tiny_resnet:TinyResNet", 10).eval()
    model = make_template(net, PREPROCESS, TARGET.name, 1, ()).to_onnx()
    onnx.helper.set_model_props(model, replace(METADATA, precision="int8", target=TARGET.name).to_props())
    path = tmp_path_factory.mktemp("exported") / "tiny_int8.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def built(exported: Path) -> Path:
    return build_engine(TARGET.engine, exported, exported.parent / "build", TARGET)


@pytest.fixture
def plan(built: Path, tmp_path: Path) -> Path:
    for file in (built, sidecar_path(built)):
        shutil.copy(file, tmp_path)
    return tmp_path / built.name


def without_sidecar(plan: Path) -> None:
    sidecar_path(plan).unlink()


def truncated(plan: Path) -> None:
    plan.write_bytes(plan.read_bytes()[:1000])


def of_neither_edition(plan: Path) -> None:
    plan.write_bytes(b"none" + plan.read_bytes()[4:])


def empty(plan: Path) -> None:
    plan.write_bytes(b"")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", [None, without_sidecar, truncated, of_neither_edition, empty])
def test_a_plan_without_a_gpu_is_one_error_with_its_fix(
    plan: Path, damage: Callable[[Path], None] | None, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if damage:
        damage(plan)
    assert COMMANDS[command](plan) == BackendAbsent.exit_code
    error, fix = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert fix.startswith("  fix: ")
    if damage in (None, without_sidecar, truncated):
        assert error.endswith(ABSENT)


@pytest.mark.parametrize("command", ["accuracy", "predict"])  # ``latency`` opens the plan in another process
def test_without_the_package_it_is_named(
    plan: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    assert COMMANDS[command](plan) == BackendAbsent.exit_code
    error, fix = capsys.readouterr().err.splitlines()
    assert "missing the Python package 'tensorrt_rtx_bindings' and an NVIDIA GPU" in error
    assert "pip install" in fix


def test_deploy_says_where_the_plan_runs(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--engine", str(plan), "--output", str(plan.parent / "device")]
    assert deploy.main(command) == EngineError.exit_code
    error, fix = capsys.readouterr().err.splitlines()
    assert "runs only on GPUs of compute capability 8.6, 8.9, 12.0, with version 1." in error
    assert "resnet-compress predict" in fix
    sidecar_path(plan).unlink()
    assert deploy.main(command) == EngineError.exit_code
    assert "the compute capabilities that it was built for" in capsys.readouterr().err
    assert not (plan.parent / "device").exists()


def test_its_layers_are_timed_by_another_program(plan: Path) -> None:
    with pytest.raises(EngineError, match="layers of a TensorRT plan") as caught:
        check([plan], Settings(), "-")
    assert "`tensorrt_rtx --loadEngine" in (caught.value.remedy or "")


def test_it_runs_on_a_gpu(plan: Path) -> None:
    assert Settings().on_gpu(plan)


def test_doctor_says_that_it_can_be_built_but_not_run() -> None:
    (target,) = [one for one in abilities() if (one.of, one.name) == ("target", "tensorrt-rtx")]
    assert target.here
    assert target.said == f"can be built here, for tensorrt-rtx, but not run: {ABSENT}"


def test_the_summary_measures_the_exported_file_and_says_what_was_built(
    exported: Path, float_onnx: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")

    def work(out: Path, scratch: Path) -> None:
        shutil.copyfile(float_onnx, out / "resnet18_fp32.onnx")
        shutil.copyfile(float_onnx, out / "resnet18_dense_fp32.onnx")
        shutil.copyfile(exported, out / "resnet18_int8.onnx")

    run.stage("export", work, settings={})
    build(Config.model_validate({"target": {"engine": TARGET.engine}}), run)
    assert (run.folder("build") / "resnet18_int8.plan").is_file()
    assert networks(run)["pruned INT8"] == run.folder("export") / "resnet18_int8.onnx"
    rows = summarize(run, None, replace(PRESETS["fast"], processes=1))
    write(run, rows)
    said = "pruned INT8: resnet18_int8.plan was built for GPUs of compute capability 8.6, 8.9, 12.0, with tensorrt-rtx"
    (note,) = [remark for remark in remarks(rows) if remark.startswith(said)]
    assert "is not in the table" in note
    assert note in (run.directory / "summary.md").read_text()
    written = read(run.directory / "summary.json", SummaryFile, remedy="", error=EngineError)
    assert note in remarks(written.rows)
    assert any("made for tensorrt-rtx, measured in onnxruntime" in remark for remark in remarks(rows))


def test_a_front_is_measured_on_the_exported_files(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(config: Config, run: Run, source: str) -> Path:
        return run.stage(
            "export", lambda out, _: onnx.save(onnx.load(exported), out / "resnet18_int8.onnx"), settings={}
        )

    monkeypatch.setattr(pareto, "quantize", lambda config, run, source: None)
    monkeypatch.setattr(pareto, "export", export)
    run = Run(tmp_path)
    found = pareto.finish(Config.model_validate({"target": {"engine": TARGET.engine}}), run, "finetune")
    assert found == run.folder("export") / "resnet18_int8.onnx"
    assert (run.folder("build") / "resnet18_int8.plan").is_file()


def test_a_plan_of_either_edition_has_its_own_name_in_the_table(
    exported: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.engines.tensorrt.edition.Edition.require", lambda self, device: None)
    run = Run(tmp_path / "run")

    def export(out: Path, scratch: Path) -> None:
        for name in ("tiny_dense_fp32.onnx", "tiny_fp32.onnx", "tiny_int8.onnx"):
            shutil.copyfile(exported, out / name)

    def work(out: Path, scratch: Path) -> None:
        for file in (built, sidecar_path(built)):
            shutil.copy(file, out)

    run.stage("export", export, settings={})
    run.stage("build", work, settings={})
    assert networks(run)["pruned INT8 (tensorrt-rtx)"] == run.folder("build") / built.name
