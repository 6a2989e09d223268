"""A run that was really measured, with the files of a pruning beside it, as a page and as a model card."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import onnx
import pytest
from markdown_it import MarkdownIt

from benchmarks.evaluation.pairing import result_of
from benchmarks.evaluation.predictions import predict
from benchmarks.evaluation.summary import write
from benchmarks.report import main
from benchmarks.reporting.headline import figures, headline, warnings
from benchmarks.reporting.page import html, model_card
from benchmarks.reporting.record import read_record
from benchmarks.reporting.rows import metadata_of
from benchmarks.reporting.sections import channels, parts, prediction
from benchmarks.results.networks import MeasuredNetwork
from benchmarks.timing.run import measure
from benchmarks.timing.worker import Settings
from calibration.datasets import load_data
from compress.files import tree_sha256, write_json
from compress.graph.plan import GroupPlan, WidthPlan
from compress.models.cost import Cost
from compress.prune.latency.machine import processor
from compress.prune.latency.table import LatencyTable, Layer, Machine, Member, SegmentKind, Side, WholeRow
from compress.prune.latency.table import Row as TableRow
from compress.run import Run

QUICK = Settings(warmup_s=0.05, duration_s=0.1, iterations=30, turns=5, processes=1)
GROUPS = (
    GroupPlan("conv1", "inner", 8, 6, tuple(range(6))),
    GroupPlan("layer1.1.conv1", "inner", 8, 0, ()),
)
PLAN = WidthPlan(GROUPS, Cost(100, 10), Cost(50, 5), ("layer1.1",), (4.0, 2.0))
ALL = ["before-after", "front", "channels", "losses", "sqnr", "latency", "predicted", "measured", "origin"]


class Page(HTMLParser):
    """What a browser would find: sections, identifiers, text, and whatever would be fetched or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given[name] or "" for name in ("src", "href", "xlink:href") if name in given]
        if tag == "section":
            self.sections.append(given["id"] or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def latency_table(place: Machine) -> LatencyTable:
    """Of one convolution: 1 ms a channel, and nothing besides."""
    kind = SegmentKind("conv1", (8,), (1,), (Layer(Side(3, (0,)), Side(0, (1,))),))
    rows = tuple(TableRow("conv1", (n,), float(n), float(n), float(n), 5) for n in range(1, 9))
    networks = tuple(
        WholeRow({"conv1": n}, (), n % 2 == 0, float(n), float(n), float(n), float(n), 5) for n in range(1, 9)
    )
    segments = (Member("conv1", "conv1", ("conv1",), False),)
    return LatencyTable("net", place, False, {"conv1": 8}, (kind,), segments, rows, networks, {})


WORK = {"macs": 1, "precision": "int8", "gmacs_per_s": 1.0, "peak_gmacs_per_s": 50.0}
TRIED = {"limit_ms": 2.0, "predicted_ms": 2.0, "share": {"value": 0.5, "lo": 0.4, "hi": 0.6}, "ms": 2.1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, float_onnx: Path, int8_onnx: Path) -> Path:
    """A run with every file that a report is made from."""
    run = Run(tmp_path_factory.mktemp("whole") / "run")

    def losses(out: Path, _: Path) -> None:
        curve = {"units": [2, 4, 8], "loss": [0.5, 0.1, 0.0], "order": list(range(8))}
        groups = {group.name: curve for group in GROUPS}
        write_json(out / "losses.json", {"groups": groups, "removals": {"layer1.1": 0.2}})

    def prune(out: Path, _: Path) -> None:
        write_json(out / "plan.json", PLAN.to_json())
        write_json(out / "front.json", {"kind": "latency", "cost": [1.0, 2.0, 4.0], "loss": [1.0, 0.1, 0.0], "full": 4})
        write_json(out / "confirmed.json", {"tried": [TRIED], "limit_ms": 2, "taken": 0})

    def export(out: Path, _: Path) -> None:
        shutil.copyfile(float_onnx, out / "resnet18_dense_fp32.onnx")
        shutil.copyfile(int8_onnx, out / "resnet18_int8.onnx")

    def sensitivity(out: Path, _: Path) -> None:
        layers = [
            {"layer": "conv1", "alone": 30.0, "without": 25.0, "output": 28.0},
            {"layer": "fc", "alone": None, "without": None, "output": 20.0},
        ]
        write_json(out / "sensitivity.json", {"whole": 20.0, "layers": layers})

    place = Machine("ort-x86", "onnxruntime", "1", processor(), "x86_64", threads=1, batch=1)
    latency_table(place).write(table := run.directory / "latency_table.json")
    measured = Run(run.directory / "losses").stage("obs-1", losses, settings={})
    budgets = {"latency": "50%", "macs": None, "params": None}
    pruned = run.stage("prune", prune, settings={"prune": budgets}, parents=[table, measured])
    tuned = run.stage("finetune", lambda out, _: write_json(out / "of.json", 0), settings={}, parents=[pruned])
    exported = run.stage("export", export, settings={"source": "finetune"}, parents=[tuned])
    run.stage("sensitivity", sensitivity, settings={})
    files = [exported / "resnet18_dense_fp32.onnx", exported / "resnet18_int8.onnx"]
    found = load_data("digits").eval
    assert found is not None
    answers = [predict(path, found.subset(range(60), "eval")) for path in files]
    dense, int8 = measure(files, QUICK)
    rows = [
        MeasuredNetwork.of("dense FP32", metadata_of(files[0]), result_of(answers[0]), dense),
        MeasuredNetwork.of("pruned INT8", metadata_of(files[1]), result_of(answers[1], answers[0]), int8),
    ]
    write(run, rows)
    return run.directory


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(whole, tmp_path / "run")


def change(path: Path, edit: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    write_json(path, value)


def unpruned(run: Path) -> None:
    for folder in ("prune", "losses"):
        shutil.rmtree(run / folder)


def without_outputs(run: Path) -> bool:
    return not [path for path in run.iterdir() if "report" in path.name or "model_card" in path.name]


def test_every_part_is_told_in_order_on_one_page_that_needs_no_other(run: Path) -> None:
    assert main([str(run)]) == 0
    page = Page(written := (run / "report.html").read_text())
    assert page.sections == [*ALL, "missing"]
    assert "python -m benchmarks.pareto" in page.text  # the front was predicted, not measured
    assert all(link.startswith("#") for link in page.links)
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert len(page.ids) == len(set(page.ids))
    assert "@import" not in written
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", written)
    assert html(read_record(run)) == written  # the same files give the same bytes


def test_a_share_above_the_peak_is_marked(run: Path) -> None:
    change(run / "summary.json", lambda record: record["rows"][1]["latency"].update(work={**WORK, "gmacs_per_s": 82.0}))
    text = Page(html(read_record(run))).text
    assert "164%: above the peak, no share" in text
    assert "do not read it as a share" in text
    change(run / "summary.json", lambda record: record["rows"][1]["latency"].update(work={**WORK, "gmacs_per_s": 41.0}))
    assert "do not read it as a share" not in Page(html(read_record(run))).text


def test_files_of_the_version_before_are_read(run: Path) -> None:
    """Rows of ``summary.json`` did not tell architecture, precision and target."""
    before = read_record(run)

    def older(record: Any) -> None:
        for row in record["rows"]:
            for name in ("arch", "precision", "target", "predicted_ms"):
                del row[name]

    change(run / "summary.json", older)
    record = read_record(run)
    assert record.result.name == before.result.name
    assert prediction(record) == prediction(before)


def test_the_first_sentence_is_the_result(run: Path) -> None:
    rows = json.loads((run / "summary.json").read_text())["rows"]
    ratio = rows[1]["latency"]["comparison"]["ratio"]
    change = rows[1]["accuracy"]["paired"]["difference"]
    page, card = html(record := read_record(run)), model_card(record)
    for text in (Page(page).text, card):
        assert f"pruned INT8 network is {1 / ratio['value']:.2f} times as fast as dense FP32" in text
        assert f"(95% interval {1 / ratio['hi']:.2f} to {1 / ratio['lo']:.2f})" in text
        assert f"{100 * change['value']:+.2f} points" in text
        assert f"takes {rows[1]['bytes'] / 1e6:.2f} MB instead of {rows[0]['bytes'] / 1e6:.2f} MB" in text
    assert rows[1]["latency"]["artifact"]["sha256"] in page
    assert rows[1]["latency"]["artifact"]["sha256"] in card


def test_what_has_no_data_is_left_out_with_the_command_that_makes_it(run: Path) -> None:
    unpruned(run)
    shutil.rmtree(run / "sensitivity")
    found, missing = parts(read_record(run))
    assert [part.anchor for part in found] == ["before-after", "latency"]
    commands = " ".join(one.command for one in missing)
    for module in ("benchmarks.pareto", "compress prune", "compress sensitivity", "benchmarks.latency_table"):
        assert f"python -m {module}" in commands


def test_a_measured_front_takes_the_predicted_ones_place(run: Path) -> None:
    shutil.rmtree(run / "losses")
    rows = [{**row, "predicted_ms": None} for row in json.loads((run / "summary.json").read_text())["rows"]]
    write_json(run / "pareto" / "pareto.json", {"title": "measured", "rows": rows})
    found, missing = parts(read_record(run))
    assert [part.title for part in found][1] == "Accuracy against latency"
    assert not [one for one in missing if "pareto" in one.command]


def test_prediction_stands_beside_the_measurement_of_the_same_place(run: Path) -> None:
    measured = json.loads((run / "summary.json").read_text())["rows"][1]["latency_ms"]
    part = prediction(read_record(run))
    assert part is not None
    assert f"The exported network takes {measured:.3f} ms" in part.text
    assert "On 4 whole networks that the model had not seen, it was wrong by 0.0% at most" in part.text
    table = part.tables[0]
    assert table.rows[1][:3] == ["pruned", "2.000 (50.0%)", "2.000 (50.0%)"]  # asked for, planned
    assert table.rows[1][3].startswith(f"{measured:.3f}")


@pytest.mark.parametrize(
    "edit",
    [
        lambda row: row["latency"]["modes"].update(threads=2),
        lambda row: row["latency"]["scenario"].update(batch=2),
        lambda row: row["latency"]["backend"].update(name="openvino"),
        lambda row: row["latency"]["host"].update(cpu="another processor"),
        lambda row: row.update(target="openvino"),
    ],
)
def test_no_prediction_is_held_against_a_measurement_of_another_place(run: Path, edit: Callable[[Any], None]) -> None:
    change(run / "summary.json", lambda record: edit(record["rows"][1]))
    part = prediction(read_record(run))
    assert part is not None
    assert "The exported network takes" not in part.text
    assert "No INT8 network of this run was measured with the model's engine, device and threads" in part.text
    assert part.tables[0].rows[1][3:] == ["", ""]


def test_an_invalid_measurement_is_told_before_all_else(run: Path) -> None:
    def spoil(record: Any) -> None:
        record["rows"][1]["latency"]["verdict"] = {"status": "INVALID", "reasons": ["the machine was throttled"]}

    unpruned(run)
    change(run / "summary.json", spoil)
    record = read_record(run)
    assert '<dl class="figures unusable">' in html(record)
    text = Page(html(record)).text
    assert text.index("INVALID: do not use") < text.index("pruned INT8: the machine was throttled")
    assert text.index("the machine was throttled") < text.index("times as fast")
    assert "**INVALID, do not use these figures:** pruned INT8: the machine was throttled" in model_card(record)


def test_what_has_changed_since_the_measurement_is_told(run: Path) -> None:
    path = run / "export" / "resnet18_int8.onnx"
    model = onnx.load(path)
    model.doc_string = "exported again"
    onnx.save(model, path)
    Run(run).stage("prune", lambda out, _: write_json(out / "plan.json", PLAN.to_json()), settings={"prune": "again"})
    record = read_record(run)
    first, second = warnings(record)[:2]
    assert first == "pruned INT8: export/resnet18_int8.onnx has changed since it was measured"
    assert "prune has run since the export" in second
    assert channels(record) is None


def test_names_are_text_and_never_markup(run: Path) -> None:
    unpruned(run)
    evil = "<script>alert(1)</script>--><b>| [x](http://y) `c` *d* &amp;"
    change(run / "summary.json", lambda record: record["rows"][1].update(name=f"INT8 {evil}"))
    change(run / "sensitivity" / "sensitivity.json", lambda record: record["layers"][0].update(layer=evil))
    preprocess = {"size": 32, "resize": 0, "channels": 1, "mean": [0.5], "std": [0.5]}
    model = {"format": 1, "arch": evil, "args": {}, "preprocess": preprocess, "classes": [evil], "layers": {}}
    write_json(run / "baseline" / "model.json", model)
    record = read_record(run)
    page = Page(html(record))
    assert not page.tags & {"script", "b"}
    assert evil in page.text
    card = model_card(record)
    parsed = MarkdownIt("commonmark").enable("table").parse(card)
    inline = [part for token in parsed for part in token.children or ()]
    assert {part.type for part in inline} <= {"text", "code_inline", "strong_open", "strong_close", "softbreak"}
    said = ["".join(part.content for part in token.children or ()) for token in parsed if token.type == "inline"]
    assert any(text.startswith(f"INT8 {evil}") for text in said)
    assert any(f"classes: {evil}" in text for text in said)


def test_a_model_card_is_markdown_without_entities(run: Path) -> None:
    preprocess = {"size": 32, "resize": 0, "channels": 1, "mean": [0.5], "std": [0.5]}
    model = {"format": 1, "arch": "it's", "args": {}, "preprocess": preprocess, "layers": {}}
    write_json(run / "baseline" / "model.json", {**model, "classes": ["cat's & dog's"]})
    change(run / "summary.json", lambda record: record["rows"][1]["latency"]["artifact"].update(path="a`b``c.onnx"))
    card = model_card(read_record(run))
    assert "it's" in card
    assert "cat's & dog's" in card
    assert "```a`b``c.onnx```" in card
    assert "&#" not in card


def test_names_that_are_not_text_are_escaped(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd, shown = "\x1b[2J\x07", r"\x1b[2J\x07"
    change(run / "summary.json", lambda record: record["rows"][1].update(name=f"INT8 {odd}"))
    run = run.rename(run.with_name(os.fsdecode(b"caf\xe9 [red]")))
    assert main([str(run)]) == 0
    assert r"caf\xe9 [red]/report.html" in capsys.readouterr().out.replace("\n", "")
    page, card = ((run / name).read_text() for name in ("report.html", "model_card.md"))
    assert f"INT8 {shown}" in page
    assert f"INT8 {shown}" in card.replace("\\[", "[")
    assert r"Run caf\xe9 [red]" in page


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("summary.json", "{", "is not JSON"),
        ("summary.json", "[]", "is damaged"),
        ("summary.json", '{"title": "", "rows": []}', "at least 1 item"),
        ("summary.json", '{"title": "", "rows": [{"name": "x"}]}', "'rows.0.params' is missing"),
        ("prune/plan.json", "{}", "prune"),
        ("prune/confirmed.json", "{}", "'limit_ms' is missing"),
        ("prune/front.json", "{}", "'kind' is missing"),
        ("losses/obs-1/losses.json", '{"groups": {"conv1": {}}}', "is damaged"),
        ("sensitivity/sensitivity.json", '{"layers": 3}', "is damaged"),
        ("pareto/pareto.json", "{}", "'title' is missing"),
        ("export/stage.json", "nothing", "is not JSON"),
        ("export/stage.json", "[]", "is damaged"),
        ("export/stage.json", "{}", "is damaged"),
        ("baseline/model.json", '{"arch": "a", "classes": 3}', "is damaged"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_written(
    run: Path, name: str, content: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    if name.startswith("prune/"):  # the exported network's own, and damaged
        reparent(run)
    assert main([str(run)]) == 1
    said = capsys.readouterr().err
    assert complaint in said
    assert Path(name).parts[0] in said
    assert "fix: " in said
    assert without_outputs(run)


def reparent(run: Path) -> None:
    """Make what follows ``prune`` a child of it as it is now."""
    for stage, parent in (("finetune", "prune"), ("export", "finetune")):
        change(run / stage / "stage.json", lambda m, p=parent: m.update(parents={p: tree_sha256(run / p)}))


def test_a_result_of_another_schema_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(run / "summary.json", lambda record: record["rows"][0]["latency"].update(schema_version=99))
    assert main([str(run)]) == 1
    said = capsys.readouterr().err
    assert "schema version 99, this version reads 3" in said
    assert "python -m benchmarks.summary" in said


def test_a_folder_that_is_no_run_or_was_not_measured(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty := tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "gone")]) == main([str(empty)]) == 1
    said = capsys.readouterr().err
    assert "there is no folder" in said
    assert "is not a run" in said
    (run / "summary.json").unlink()
    assert main([str(run)]) == 1
    assert f"python -m benchmarks.summary --run {run}" in capsys.readouterr().err
    assert without_outputs(run)
    assert without_outputs(empty)


def test_a_run_without_accuracy_says_so(run: Path) -> None:
    def strip(record: Any) -> None:
        for row in record["rows"]:
            row["accuracy"] = row["top1"] = None

    unpruned(run)
    change(run / "summary.json", strip)
    record = read_record(run)
    assert "its accuracy was not measured" in headline(record)
    assert "top-1 accuracy" not in [figure.name for figure in figures(record)]
    assert headline(record) in Page(html(record)).text
