"""A budget from pruning to the plot, on a network that takes seconds; then the plots of its pruning."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import deploy, latency_table, pareto, plots, show
from benchmarks.evaluation.pareto import make, points_of
from benchmarks.profiling import measure
from benchmarks.profiling.kit import Effort
from benchmarks.reporting.choices import choices, which
from benchmarks.reporting.figures import draw, svg
from benchmarks.reporting.figures import pareto as pareto_figure
from benchmarks.reporting.latency import to_markdown
from benchmarks.reporting.page import front_html
from benchmarks.reporting.record import read_record
from benchmarks.results.base import Bounds, Verdict
from benchmarks.results.networks import MeasuredNetwork, ParetoFile, on_front
from benchmarks.rivals import int8_losses
from benchmarks.timing.presets import PRESETS
from calibration.preprocess import Preprocess
from compress.cli import main as compress_main
from compress.config import load_config
from compress.errors import ConfigError, PipelineError
from compress.files import write_json
from compress.models.model import Model, save_model
from compress.models.registry import build
from compress.parse import read
from compress.run import Run

ARCH = "tiny_resnet:TinyResNet"
SETTINGS = [
    f"model.arch={ARCH}",
    "run.name=tiny",
    "data.kind=digits",
    "data.input_size=16",
    "prune.images=75",
    "prune.min_width=2",
    "prune.macs=50%",  # gives way to the latencies
    "finetune.epochs=0",
    "quantize.calibration_images=32",
]


def with_baseline(folder: Path) -> Path:
    def work(out: Path, scratch: Path) -> None:
        torch.manual_seed(0)
        classes = tuple("0123456789")
        save_model(Model(build(ARCH, 10).eval(), ARCH, Preprocess(size=16), classes), out)

    Run(folder).stage("baseline", work, settings={})
    return folder


def command(folder: Path, *more: str) -> int:
    chosen = [word for setting in (f"run.dir={folder}", *SETTINGS) for word in ("--set", setting)]
    return pareto.main([*chosen, "--fast", *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = with_baseline(tmp_path_factory.mktemp("pareto") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "FITTED", 1)  # no constant from noise, which could put any budget out of reach
        patch.setattr(measure, "HELD_OUT", 0)
        patch.setattr(measure, "FAST", Effort(2, 0.001))
        patch.setitem(PRESETS, "fast", replace(PRESETS["fast"], processes=1))
        assert latency_table.main(["--run", str(folder), "--set", SETTINGS[0], "--fast"]) == 0
        assert command(folder, "--at", "75%") in (0, 4)  # 4: this machine is not quiet
    return folder


def test_points_are_measured_with_the_dense_networks(folder: Path) -> None:
    record = json.loads((folder / "pareto" / "pareto.json").read_text())
    rows = {row["name"]: row for row in record["rows"]}
    assert list(rows) == ["dense FP32", "dense INT8", "75% INT8", "75% FP32"]
    predicted = [row["predicted_ms"] for row in rows.values()]
    assert predicted[0] is None
    assert predicted[2] < predicted[1]
    confirmed = json.loads((folder / "pareto" / "75pct" / "prune" / "confirmed.json").read_text())
    taken = confirmed["tried"][confirmed["taken"]]
    assert taken["predicted_ms"] == predicted[2]
    assert taken["share"]["value"] <= 0.75
    assert rows["75% INT8"]["macs"] < rows["dense INT8"]["macs"] == rows["dense FP32"]["macs"]
    assert rows["75% FP32"]["macs"] == rows["75% INT8"]["macs"]
    assert [row["precision"] for row in rows.values()] == ["fp32", "int8", "int8", "fp32"]
    assert len(rows["75% INT8"]["latency"]["scenario"]["interleaved_with"]) == 3
    assert rows["75% INT8"]["accuracy"]["paired"]["against"]["path"].endswith("tiny_dense_fp32.onnx")
    assert "| 75% INT8" in (folder / "pareto" / "pareto.md").read_text()


def test_points_share_what_does_not_depend_on_the_budget(folder: Path) -> None:
    assert len(list((folder / "losses").iterdir())) == 1
    assert len(list((folder / "calibrations").iterdir())) == 2
    assert not (folder / "prune").exists()


def test_what_is_done_is_not_done_again(folder: Path) -> None:
    manifests = {path: path.read_bytes() for path in folder.glob("pareto/*/*/stage.json")}
    config = load_config(None, [f"run.dir={folder}", *SETTINGS])
    made, left_out = make(config, points_of(config, ["75%"]))
    assert left_out == []
    assert [one.name for one in made] == ["dense FP32", "dense INT8", "75% INT8", "75% FP32"]
    assert manifests == {path: path.read_bytes() for path in folder.glob("pareto/*/*/stage.json")}


def test_plots_are_drawn_from_the_files_and_always_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    point = folder / "pareto" / "75pct"  # a run's folder like any other
    assert plots.main(["--run", str(point)]) == 0
    assert "front.svg, losses.svg, removals.svg" in capsys.readouterr().out
    drawn = {path.name: path.read_text() for path in (point / "plots").iterdir()}
    assert all(text.startswith("<?xml") and "dc:date" not in text for text in drawn.values())
    assert drawn == {name: svg(figure) for name, figure in draw(point).items()}
    assert svg(draw(folder)["pareto.svg"]) == (folder / "pareto" / "pareto.svg").read_text()


def test_losses_of_the_int8_network_stand_beside_those_of_the_float_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "int8.json"
    chosen = [word for setting in (f"run.dir={folder}", *SETTINGS) for word in ("--set", setting)]
    assert int8_losses.main([*chosen, "--cells", "2"]) == 2
    assert "give --cells 3 or more" in capsys.readouterr().err
    assert int8_losses.main([*chosen, "--cells", "3", "--json", str(out)]) == 0
    assert "3 cells: Spearman's rank correlation" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert len(found["cells"]) == 3
    assert max(cell["float_loss"] for cell in found["cells"]) > 0
    for cell in found["cells"]:
        assert cell["int8_loss"] > 0
        assert 2 * cell["width"] >= cell["units"] > cell["width"]


SIZES = ("--set", "prune.sizes=[16, 12]", "--set", "prune.confirm=false")


@pytest.fixture(scope="module")
def sized(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the latency tables of two input sizes."""
    run = tmp_path_factory.mktemp("sized") / "run"
    shutil.copytree(folder / "baseline", run / "baseline")
    chosen = [word for setting in (f"run.dir={run}", *SETTINGS) for word in ("--set", setting)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "FITTED", 1)
        patch.setattr(measure, "HELD_OUT", 0)
        patch.setattr(measure, "FAST", Effort(2, 0.001))
        assert latency_table.main([*chosen, *SIZES, "--fast"]) == 0
    assert (run / "sizes" / "12px" / "latency_table.json").exists()
    return run


@pytest.fixture
def two_sizes(sized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(PRESETS, "fast", replace(PRESETS["fast"], processes=1))
    return shutil.copytree(sized, tmp_path / "run")


def test_points_choose_their_input_size(two_sizes: Path) -> None:
    run = two_sizes
    assert command(run, "--at", "90%", *SIZES) in (0, 4)
    record = json.loads((run / "pareto" / "90pct" / "prune" / "sizes.json").read_text())
    row = json.loads((run / "pareto" / "pareto.json").read_text())["rows"][2]
    assert row["latency"]["scenario"]["shape"] == [1, 3, record["taken"], record["taken"]]
    assert row["latency"]["scenario"]["inputs"] == "images"
    assert re.search(rf"\| 90% INT8[^|]*\| +{record['taken']} \|", (run / "pareto" / "pareto.md").read_text())
    assert not (run / "pareto" / "90pct" / "sizes" / "16px").exists()  # the run's own table, losses and baseline
    plan = json.loads((run / "pareto" / "90pct" / "prune" / "plan.json").read_text())
    assert plan["before"]["macs"] == record_of(run, "dense INT8")["macs"]


def test_every_budget_at_every_size(two_sizes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = two_sizes
    thousand_times_as_fast(run / "sizes" / "12px" / "latency_table.json")
    assert command(run, "--at", "1%,95%", "--each-size", *SIZES) in (0, 4)
    record = json.loads((run / "pareto" / "pareto.json").read_text())
    same, refused = record["left_out"]
    assert same == "95% at 12 px is left out: the same network as 1% at 12 px"
    assert re.match(r"1% at 16 px is left out: .*cannot be met", refused)
    for told in (
        capsys.readouterr().out,
        *((run / "pareto" / f"pareto.{kind}").read_text() for kind in ("md", "html")),
    ):
        assert same in told
        assert "Which one?" in told
    pixels = {row["name"]: row["latency"]["scenario"]["shape"][-1] for row in record["rows"][2:]}
    assert pixels == {
        f"{name} {kind}": size
        for name, size in (("95% at 16 px", 16), ("1% at 12 px", 12))
        for kind in ("INT8", "FP32")
    }
    assert show.main([str(run / "pareto" / "pareto.json")]) == 0
    assert re.search(r"\| 1% at 12 px INT8[^|]*\| +12 \|", capsys.readouterr().out)
    measured = read(run / "pareto" / "pareto.json", ParetoFile, remedy="").rows
    told = to_markdown([row.latency for row in measured])
    assert told.startswith("latency, 2 input sizes, ")
    assert "| tiny_int8.onnx (1x3x12x12) " in told
    assert command(run, "--at", "1%", "--each-size", "--set", "prune.sizes=[16]") == 1
    assert "cannot be met" in capsys.readouterr().err


def thousand_times_as_fast(table: Path) -> None:
    """So that every budget leaves the network as it is."""
    record = json.loads(table.read_text())
    for row in (*record["rows"], *record["networks"]):
        row.update({key: value / 1000 for key, value in row.items() if key in ("ms", "lo", "hi", "median")})
    write_json(table, record)


def test_the_page_shows_what_to_take(folder: Path) -> None:
    record = read(folder / "pareto" / "pareto.json", ParetoFile, remedy="")
    rows = [
        changed(row, ms, top1)
        for row, ms, top1 in zip(record.rows, (10.0, 4.0, 2.0, 5.0), (0.90, 0.895, 0.87, 0.88), strict=True)
    ]
    assert [one.name for one in on_front(rows)] == ["75% INT8", "dense INT8", "dense FP32"]
    assert [(one.network.name, one.limits) for one in choices(rows)] == [
        ("dense FP32", ()),
        ("dense INT8", (0.5, 1.0, 2.0)),
        ("75% INT8", (3.0, 5.0)),
    ]
    table = which(rows)
    assert table.header[:2] == ["network", "fastest that loses at most, points"]
    assert [row[:3] for row in table.rows] == [
        ["dense FP32", "", "16"],
        ["dense INT8", "0.5, 1, 2", "16"],
        ["75% INT8", "3, 5", "16"],
    ]
    page = front_html("run", record.model_copy(update={"rows": tuple(rows)}))
    assert "Take 75% INT8" in page
    assert "Take 75% FP32" not in page  # the dense network is faster and more accurate
    assert str(folder / "pareto" / "75pct" / "build" / "tiny_int8.onnx") in page
    command = choices(rows)[2].deploy
    assert command is not None
    assert shlex.split(command)[:4] == ["python", "-m", "benchmarks.deploy", "--engine"]
    known_by_nothing = [row.model_copy(update={"accuracy": None, "top1": None}) for row in rows]
    assert choices(known_by_nothing) == []


def test_what_is_invalid_is_no_choice(folder: Path) -> None:
    record = read(folder / "pareto" / "pareto.json", ParetoFile, remedy="")
    rows = [changed(row, ms, 0.9) for row, ms in zip(record.rows, (10.0, 4.0, 2.0, 5.0), strict=True)]
    rows[2] = spoilt(rows[2])
    table = which(rows)
    assert [row[0] for row in table.rows] == ["dense INT8"]
    assert "INVALID measurement are left out" in table.note
    assert "75%" not in svg(pareto_figure("a title", rows))  # only what is on the front has a name
    rows = list(map(spoilt, rows))
    assert which(rows).rows == []
    assert "measure again" in which(rows).note
    assert "measure again" in front_html("run", record.model_copy(update={"rows": tuple(rows)}))


def test_a_file_for_another_engine_is_not_deployed_as_it_is(folder: Path) -> None:
    record = read(folder / "pareto" / "pareto.json", ParetoFile, remedy="")
    rows = [changed(row, ms, 0.9) for row, ms in zip(record.rows, (10.0, 4.0, 2.0, 5.0), strict=True)]
    rows[2] = rows[2].model_copy(update={"target": "tensorrt"})
    assert choices(rows)[-1].deploy is None
    assert "those of onnxruntime on this machine, not of the target's engine" in which(rows).note
    page = front_html("run", record.model_copy(update={"rows": tuple(rows)}))
    assert f"<code>{folder / 'pareto' / '75pct'}</code>" in page


def test_the_report_finds_the_files_of_a_run_that_was_moved(folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(folder, tmp_path / "moved")
    measured = json.loads((moved / "pareto" / "pareto.json").read_text())
    del measured["left_out"]  # a summary has no such field
    write_json(moved / "summary.json", measured)
    record = read_record(moved)
    assert record.front is not None
    assert {Path(row.latency.artifact.path).parents[3] for row in record.front.rows} == {moved}
    (moved / "pareto" / "75pct" / "build" / "tiny_int8.onnx").write_bytes(b"another")
    assert any("75% INT8: build/tiny_int8.onnx has changed" in text for text in read_record(moved).stale)


def spoilt(row: MeasuredNetwork) -> MeasuredNetwork:
    busy = Verdict(status="INVALID", reasons=["the machine was busy"])
    return row.model_copy(update={"latency": row.latency.model_copy(update={"verdict": busy})})


def changed(row: MeasuredNetwork, ms: float, top1: float) -> MeasuredNetwork:
    """A measured row with another latency and accuracy, and VALID on whatever machine."""
    accuracy = row.accuracy
    assert accuracy is not None
    if accuracy.paired is not None:
        lost = Bounds(value=top1 - 0.90, lo=top1 - 0.91, hi=top1 - 0.89)
        accuracy = accuracy.model_copy(update={"paired": accuracy.paired.model_copy(update={"difference": lost})})
    latency = row.latency.model_copy(update={"verdict": Verdict(status="VALID", reasons=[])})
    return row.model_copy(update={"latency_ms": ms, "top1": top1, "accuracy": accuracy, "latency": latency})


def test_the_file_of_a_choice_can_be_deployed(folder: Path, tmp_path: Path) -> None:
    rows = json.loads((folder / "pareto" / "pareto.json").read_text())["rows"]
    for row in rows[2:]:
        assert (
            deploy.main(["--engine", row["latency"]["artifact"]["path"], "--output", str(tmp_path / row["name"])]) == 0
        )
        assert (tmp_path / row["name"] / "predict.py").exists()


def record_of(run: Path, name: str) -> dict[str, Any]:
    rows = json.loads((run / "pareto" / "pareto.json").read_text())["rows"]
    return next(row for row in rows if row["name"] == name)


def test_a_backbone_with_unlabelled_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, images = tmp_path / "run", tmp_path / "images"
    images.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (40, 16, 16, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(images / f"{number}.png")
    given = ["model.arch=tiny_resnet:TinyBackbone", "data.kind=imagefolder", f"data.calibration={images}"]
    settings = [f"run.dir={run}", *SETTINGS, *given, "prune.images=32", "prune.confirm=false"]
    words = [word for setting in settings for word in ("--set", setting)]
    with pytest.raises(SystemExit, match="0"):
        compress_main(["baseline", *words])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "FITTED", 1)
        patch.setattr(measure, "HELD_OUT", 0)
        patch.setattr(measure, "FAST", Effort(2, 0.001))
        patch.setitem(PRESETS, "fast", replace(PRESETS["fast"], processes=1))
        assert latency_table.main([*words, "--fast"]) == 0
        assert pareto.main([*words, "--fast", "--at", "75%"]) in (0, 4)
    rows = {row["name"]: row for row in json.loads((run / "pareto" / "pareto.json").read_text())["rows"]}
    assert rows["75% INT8"]["fidelity"]["images"] == 40
    assert "SQNR dB" in capsys.readouterr().out


def test_budgets_are_put_in_order_and_in_place_of_all_others(tmp_path: Path) -> None:
    config = load_config(None, [f"run.dir={tmp_path}", "prune.macs=40%", "prune.keep=['fc']"])
    points = points_of(config, ["35%", "80%"])
    assert [(point.name, point.config.run.dir) for point in points] == [
        (name, tmp_path / "pareto" / name) for name in ("80pct", "35pct")
    ]
    assert [budget.kind for budget in points[0].config.prune.budgets()] == ["latency"]
    assert points[0].config.prune.keep == ("fc",)
    mixed = [point.name for point in points_of(config, ["0.5 ms", "35%", "4 ms", "80%"])]
    assert mixed == ["80pct", "35pct", "4ms", "0.5ms"]


@pytest.mark.parametrize("at", [["0%"], ["120%"], ["fast"], ["4"], ["50%", "50.0%"]])
def test_budgets_that_are_none(at: list[str]) -> None:
    with pytest.raises(ConfigError, match="--at"):
        points_of(load_config(None), at)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--at", "1%"), "cannot be met"),
        (("--at", "90%", "--set", "prune.table=nowhere.json"), "benchmarks.latency_table"),
        (("--at", "90%", "--set", "data.kind=imagefolder"), "no folder is given"),
        (("--at", "90%", "--each-size"), "prune.sizes is not set"),
    ],
)
def test_a_users_mistake_is_told(
    folder: Path, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(folder, *more) in (1, 2)
    assert message in capsys.readouterr().err


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="nothing to draw"):
        draw(tmp_path)
