"""Networks without classes: their outputs are compared with those of the unpruned network."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest

from benchmarks.accuracy import main as accuracy
from benchmarks.evaluation.fidelity import fidelity
from benchmarks.evaluation.images import evaluation_split, first_images
from benchmarks.evaluation.pareto import Made, evaluate, write
from benchmarks.evaluation.predictions import predict
from benchmarks.reporting.choices import choices
from benchmarks.reporting.headline import headline
from benchmarks.reporting.record import read_record
from benchmarks.reporting.rows import metadata_of
from benchmarks.results.base import Verdict
from benchmarks.results.networks import on_front
from benchmarks.results.schema import json_schema
from benchmarks.show import main as show
from benchmarks.summary import main as summary
from benchmarks.timing.presets import PRESETS
from benchmarks.timing.worker import Settings
from calibration.split import Split
from compress.engines.base import open_engine
from compress.errors import EngineError
from compress.run import Run


def backbone(path: Path, to: Path) -> Path:
    """A copy that also gives its feature map, and states no classes."""
    model = onnx.load(path)
    about = metadata_of(path)
    name = next(node.output[0] for node in model.graph.node if node.op_type == "Conv")
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 1, 8, 8]))
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, replace(about, classes=()).to_props())
    onnx.save(model, to)
    return to


@pytest.fixture(scope="module")
def split() -> Split:
    return evaluation_split("digits").subset(range(50), "eval")


@pytest.fixture(scope="module")
def files(float_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A backbone, and the same with other weights."""
    folder = tmp_path_factory.mktemp("backbones")
    dense = backbone(float_onnx, folder / "dense_fp32.onnx")
    model = onnx.load(dense)
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "w2")
    noise = np.random.default_rng(0).normal(0, 0.05, (10, 64))
    weights.CopyFrom(onnx.numpy_helper.from_array((onnx.numpy_helper.to_array(weights) + noise).astype("f4"), "w2"))
    onnx.save(model, folder / "other_fp32.onnx")
    return dense, folder / "other_fp32.onnx"


def test_cosine_and_sqnr_are_those_of_the_outputs(files: tuple[Path, Path], split: Split) -> None:
    same, other = fidelity(files[0], [files[0], files[1]], split, batch_size=16)
    assert same.sqnr_db is None
    assert same.cosine == pytest.approx(1)
    x = first_images(split, metadata_of(files[0]).preprocess, 50)
    found = []
    for path in files:
        with open_engine(path) as engine:
            found.append(engine.run({"input": x})["logits"])
    a, b = found
    logits, features = other.outputs
    assert features.sqnr_db is None  # untouched
    assert logits.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()), rel=1e-4)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert logits.cosine == pytest.approx(cosines.mean(), rel=1e-5)
    assert (other.sqnr_db, other.cosine) == (logits.sqnr_db, logits.cosine)
    assert other.images == 50
    jsonschema.validate(json.loads(other.model_dump_json()), json_schema())


def test_the_batch_changes_nothing(files: tuple[Path, Path], split: Split, tmp_path: Path) -> None:
    model = onnx.load(files[1])
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 8
    onnx.save(model, tmp_path / "fixed.onnx")
    free, fixed = fidelity(files[0], [files[1], tmp_path / "fixed.onnx"], split, batch_size=20)
    assert fixed.outputs[0].cosine == pytest.approx(free.outputs[0].cosine)
    assert fixed.sqnr_db == pytest.approx(free.sqnr_db)


def test_engines_of_other_networks_are_refused(files: tuple[Path, Path], float_onnx: Path, split: Split) -> None:
    with pytest.raises(EngineError, match="has other inputs or outputs"):
        fidelity(files[0], [float_onnx], split)


def test_the_command_compares_outputs_where_there_are_no_classes(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    dense, other = map(str, files)
    assert accuracy(["--engine", other, "--data", "digits"]) == 2
    assert "has no classes" in capsys.readouterr().err
    assert accuracy(["--engine", other, "--data", "digits", "--against", dense, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "SQNR dB" in printed
    assert "450 images" in printed
    assert show([str(out)]) == 0
    assert "SQNR dB" in capsys.readouterr().out


def test_the_summary_of_a_backbone(files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run")

    def work(out: Path, scratch: Path) -> None:
        shutil.copyfile(files[0], out / "tiny_dense_fp32.onnx")
        shutil.copyfile(files[1], out / "tiny_fp32.onnx")
        model = onnx.load(files[1])
        del model.metadata_props[:]
        about = replace(metadata_of(files[1]), precision="int8", target="ort-x86")
        onnx.helper.set_model_props(model, about.to_props())
        onnx.save(model, out / "tiny_int8.onnx")

    run.stage("export", work, settings={})
    monkeypatch.setitem(PRESETS, "fast", replace(PRESETS["fast"], processes=1))
    assert summary(["--run", str(run.directory), "--fast"]) in (0, 4)  # 4: this machine is not quiet
    rows = json.loads((run.directory / "summary.json").read_text())["rows"]
    assert [row["top1"] for row in rows] == [None] * 3
    assert rows[0]["fidelity"] is None
    assert rows[1]["fidelity"]["images"] == 450
    text = (run.directory / "summary.md").read_text()
    assert re.search(r"\| network +\| SQNR dB \| cosine \|", text)
    assert "against those of dense FP32" in text
    assert "SQNR of its outputs" in headline(read_record(run.directory))


@pytest.mark.parametrize("sigmoid", [False, True])
def test_one_output_is_the_score_of_two_classes(float_onnx: Path, tmp_path: Path, sigmoid: bool) -> None:
    model = onnx.load(float_onnx)
    for name in ("w2", "b2"):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        value = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value[1:2] - value[0:1], name))
    if sigmoid:
        model.graph.node[-1].output[0] = "score"
        model.graph.node.append(onnx.helper.make_node("Sigmoid", ["score"], ["logits"]))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    about = replace(metadata_of(float_onnx), classes=("0", "1"))
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, about.to_props())
    onnx.save(model, tmp_path / "binary.onnx")
    digits = evaluation_split("digits")
    chosen = digits.subset(np.flatnonzero(digits.labels < 2), "eval")
    found = predict(tmp_path / "binary.onnx", replace(chosen, classes=("0", "1")))
    assert found.right.mean() > 0.95


def test_backbones_of_several_budgets_are_ordered_by_their_outputs(
    files: tuple[Path, Path], split: Split, tmp_path: Path
) -> None:
    made = [Made("dense FP32", files[0]), Made("80% FP32", files[0]), Made("50% FP32", files[1])]
    rows = evaluate(made, split, Settings(warmup_s=0.05, duration_s=0.1, iterations=30, turns=5, processes=1))
    dense, same, other = rows
    assert (dense.quality, same.quality) == (None, np.inf)
    assert other.fidelity is not None
    assert other.quality == other.fidelity.sqnr_db
    write(folder := tmp_path / "run" / "pareto", made, rows)
    told = (folder / "pareto.md").read_text()
    assert "fidelity of the outputs against latency; 50 images" in told
    assert "| SQNR dB | cosine |" in re.sub(" +", " ", told)
    assert "SQNR" in (folder / "pareto.svg").read_text()
    quiet = Verdict(status="VALID", reasons=[])  # on whatever machine
    faster = [
        one.model_copy(update={"latency_ms": ms, "latency": one.latency.model_copy(update={"verdict": quiet})})
        for one, ms in zip(rows, (4.0, 2.0, 1.0), strict=True)
    ]
    assert on_front(faster) == [faster[2], faster[1]]
    assert all(one.limits == () for one in choices(faster))  # points of accuracy are not what is known
