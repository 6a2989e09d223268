from __future__ import annotations

import json
import platform
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from benchmarks.evaluation.summary import networks, summarize, write
from benchmarks.reporting.rows import table
from benchmarks.results.artifact import artifact
from benchmarks.results.base import Verdict
from benchmarks.results.tables import markdown
from benchmarks.summary import main
from benchmarks.timing.presets import PRESETS
from benchmarks.timing.result import elsewhere
from compress.config import Config
from compress.engines.base import open_engine
from compress.engines.stage import build
from compress.files import file_sha256
from compress.run import Run
from compress.targets import profile


@pytest.fixture
def run(tmp_path: Path, float_onnx: Path, int8_onnx: Path) -> Run:
    """A run whose stages ``export`` and ``build`` are done; what counts as pruned is the dense network itself."""
    run = Run(tmp_path / "run")
    with open_engine(float_onnx) as engine:
        dense = engine.metadata
    assert dense is not None

    def work(out: Path, scratch: Path) -> None:
        model = onnx.load(float_onnx)
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, replace(dense, macs=1_500_000).to_props())
        onnx.save(model, out / "resnet18_fp32.onnx")
        shutil.copyfile(float_onnx, out / "resnet18_dense_fp32.onnx")
        shutil.copyfile(int8_onnx, out / "resnet18_int8.onnx")

    run.stage("export", work, settings={})
    build(Config(), run)
    return run


def test_summary_of_a_run(run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "fast", replace(PRESETS["fast"], processes=2))
    assert main(["--run", str(run.directory), "--fast"]) in (0, 4)  # 4: this machine is not quiet
    record = json.loads((run.directory / "summary.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["dense FP32", "pruned FP32", "pruned INT8"]
    assert record["rows"][1]["macs"] == 1_500_000 < record["rows"][0]["macs"]
    assert record["rows"][1]["accuracy"]["paired"]["difference"]["value"] == 0
    assert record["rows"][0]["latency"]["comparison"] is None
    assert record["rows"][2]["latency"]["artifact"]["path"].endswith("build/resnet18_int8.onnx")
    text = (run.directory / "summary.md").read_text()
    assert "| pruned INT8" in text
    assert "Share of the machine's peak" in text
    for row in record["rows"]:
        work = row["latency"]["work"]
        assert work["gmacs_per_s"] == pytest.approx(row["macs"] / row["latency_ms"] / 1e6)
        assert work["peak_gmacs_per_s"] > 0
    assert record["plan"] is None
    assert "| pruned INT8" in capsys.readouterr().out


def test_what_is_invalid_is_called_so_wherever_it_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "fast", replace(PRESETS["fast"], processes=1))
    rows = summarize(run, None, PRESETS["fast"])
    busy = Verdict(status="INVALID", reasons=["the machine was busy"])
    latency = rows[-1].latency.model_copy(update={"verdict": busy})
    rows = [*rows[:-1], rows[-1].model_copy(update={"latency": latency})]
    write(run, rows)
    text = (run.directory / "summary.md").read_text()
    assert "| pruned INT8 (INVALID)" in text
    assert f"- INVALID, do not use these figures: {rows[-1].name}: the machine was busy" in text
    _, shown = table(rows)
    assert shown[-1][0] == "pruned INT8 (INVALID)"
    assert "INVALID" not in shown[0][0] or not rows[0].valid


def test_the_dense_int8_network_of_the_front_is_measured_too(run: Run) -> None:
    dense = Run(run.directory / "pareto" / "dense")
    run.stage("baseline", lambda out, _: (out / "model").write_text("a network"), settings={})

    def export(out: Path, _: Path) -> None:
        shutil.copyfile(run.folder("export") / "resnet18_int8.onnx", out / "resnet18_int8.onnx")

    exported = dense.stage("export", export, settings={}, parents=[run.folder("baseline")])
    files = networks(run)
    assert list(files) == ["dense FP32", "dense INT8", "pruned FP32", "pruned INT8"]
    assert files["dense INT8"] == exported / "resnet18_int8.onnx"
    run.stage("baseline", lambda out, _: (out / "model").write_text("another"), settings={"seed": 1})
    assert "dense INT8" not in networks(run)


def test_an_engine_of_an_earlier_export_is_not_measured(run: Run) -> None:
    exported = run.folder("export") / "resnet18_int8.onnx"
    assert networks(run)["pruned INT8"] == run.folder("build") / "resnet18_int8.onnx"
    model = onnx.load(exported)
    model.doc_string = "exported again"
    onnx.save(model, exported)
    manifest = run.folder("export") / "stage.json"
    record = json.loads(manifest.read_text())
    record["outputs"][exported.name] = file_sha256(exported)
    manifest.write_text(json.dumps(record))
    assert networks(run)["pruned INT8"] == exported


def test_every_built_engine_is_measured_by_its_name(run: Run) -> None:
    pytest.importorskip("openvino")
    folder = build(Config(), run, engine="openvino")
    (folder / "resnet18_int8.onnx").unlink()
    files = networks(run)
    assert list(files) == ["dense FP32", "pruned FP32", "pruned INT8 (openvino)"]
    assert files["pruned INT8 (openvino)"] == folder / "resnet18_int8.xml"
    weights = folder / "resnet18_int8.bin"
    assert artifact(folder / "resnet18_int8.xml").bytes > weights.stat().st_size


def test_the_file_without_float_layers_is_measured_too(run: Run) -> None:
    whole = run.folder("export") / "resnet18_int8_all.onnx"
    shutil.copyfile(run.folder("export") / "resnet18_int8.onnx", whole)
    files = networks(run)
    assert list(files) == ["dense FP32", "pruned FP32", "pruned INT8", "pruned INT8, no layer in float"]
    assert files["pruned INT8, no layer in float"] == whole


def test_times_that_are_not_the_targets_are_told() -> None:
    foreign = "ort-arm" if platform.machine() in profile("ort-x86").machines else "ort-x86"
    for target, said in (("tensorrt", "made for tensorrt, measured in onnxruntime"), (foreign, "measured on")):
        (note,) = elsewhere(target, "onnxruntime")
        assert said in note
    assert not list(elsewhere("", "onnxruntime"))


def test_run_that_was_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", str(tmp_path)]) == 1
    assert "stage 'export' has not run" in capsys.readouterr().err


def test_markdown_is_aligned() -> None:
    assert markdown(["a", "bb"], [["ccc", "d"]]).splitlines() == ["| a   | bb |", "|-----|---:|", "| ccc |  d |"]
