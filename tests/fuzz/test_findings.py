"""What fuzzing has found, each as a small test: a file may be anything, and the answer is a value or a named error."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from benchmarks.evaluation.predictions import load_predictions, save_predictions
from benchmarks.profiling import kit
from benchmarks.profiling.measure import import_kit
from benchmarks.profiling.survey import Piece, rungs
from benchmarks.reporting.figures import _reach
from calibration.folder import decode, read_folder
from calibration.preprocess import Preprocess
from calibration.scan import faults, files_of
from compress.config import TargetConfig, load_config
from compress.engines.base import open_engine
from compress.errors import CheckpointError, ConfigError, DataError, EngineError, ModelError, PipelineError
from compress.export.lint import lint_file
from compress.files import write_json
from compress.graph.plan import GroupPlan, WidthPlan
from compress.graph.structure import Structure
from compress.models.checkpoint import read_state
from compress.models.model import Model, load_model, save_model
from compress.models.registry import build
from compress.parse import read
from compress.prune.allocation.cost import WidthCost
from compress.prune.iterative import untouched
from compress.prune.latency.predictor import LatencyModel
from compress.prune.latency.table import LatencyTable, Layer, Machine, Member, Row, SegmentKind, Side
from compress.prune.losses.store import _before_a_kill as before_a_kill
from compress.prune.losses.store import load_losses
from compress.train.history import Epoch
from compress.train.snapshot import _MAGIC, StateFile, copy_weights


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    torch.manual_seed(0)
    return build(corpus.ARCH, 10).eval()


@pytest.fixture(scope="module")
def structure(tiny: nn.Module) -> Structure:
    return Structure.of(tiny, corpus.PREPROCESS.shape)


@pytest.fixture
def plan(tiny: nn.Module, structure: Structure) -> WidthPlan:
    cost = WidthCost(tiny, structure.coupling, corpus.PREPROCESS.shape)
    return untouched(structure.coupling, cost.of(cost.full), 2.0)


def change(path: Path, edit: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


# A pipe in the place of a file: opening it would wait for a writer for ever.


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("a.json", lambda path: read(path, dict[str, int], remedy="")),
        ("c.toml", load_config),
        ("k.npz", lambda path: load_predictions(path, corpus.images())),
        ("w.pth", read_state),
        ("i.png", decode),
        ("model.safetensors", lambda path: load_model(path.parent)),
        ("net.onnx", open_engine),
    ],
)
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str, use: Callable[[Path], object]) -> None:
    save_model(Model(build("cifar_resnet20", 3).eval(), "cifar_resnet20", Preprocess(8), ("a", "b", "c")), tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(PipelineError, match=name):
        use(tmp_path / name)


# A training's state.


def state_file(tmp_path: Path, net: nn.Module) -> StateFile:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return StateFile(tmp_path / "training.pt", "job", {"net": net, "optimizer": optimizer})


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content["parts"]["optimizer"].pop("param_groups"),
        lambda content: content["parts"]["net"].update({"1.weight": [1]}),
        lambda content: content["best"].update({"1.weight": torch.zeros(7)}),
        lambda content: content["best"].update({1: torch.zeros(7)}),
        lambda content: content["rows"].clear(),
        lambda content: content["rows"][0].update(epoch=3),
        lambda content: content["parts"]["optimizer"]["param_groups"][0].update(lr="x"),
        lambda content: content["parts"]["optimizer"]["state"].update({0: {"momentum_buffer": torch.zeros(9)}}),
    ],
)
def test_a_state_of_another_form_starts_over_and_leaves_the_network_as_it_is(
    tmp_path: Path, edit: Callable[[Any], object]
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    state = state_file(tmp_path, net)
    state.save([Epoch(0, None, 0.1, 0.5, 1.0)], copy_weights(net))
    start = len(_MAGIC) + 32
    (tmp_path / "content").write_bytes(state.path.read_bytes()[start:])
    content = torch.load(tmp_path / "content", weights_only=True)
    edit(content)
    torch.save(content, tmp_path / "content")
    data = (tmp_path / "content").read_bytes()
    state.path.write_bytes(_MAGIC + hashlib.sha256(data).digest() + data)
    nn.init.ones_(net[0].weight)
    assert state.load(torch.device("cpu")) is None
    assert torch.equal(net[0].weight, torch.ones(2, 2))


def test_a_huge_file_that_is_no_state_is_not_read(tmp_path: Path) -> None:
    state = state_file(tmp_path, nn.Linear(2, 2))
    state.path.touch()
    os.truncate(state.path, 1 << 42)  # nobody has the memory
    assert state.load(torch.device("cpu")) is None


# A network's description.


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda record: record["layers"]["layer2.0.shortcut.0"].update(source=[65536] * 32), "takes channel 65536 of"),
        (lambda record: record["layers"].update({"": record["layers"]["linear"]}), "that is the network itself"),
        (lambda record: record.update(arch="cpu"), "unknown architecture 'cpu'"),
        (lambda record: record.update(args={"x": "y" * 100_000}), "failed: TypeError"),
    ],
)
def test_a_description_that_no_network_has(tmp_path: Path, edit: Callable[[Any], object], message: str) -> None:
    net = build("cifar_resnet20", 3).eval()
    save_model(Model(net, "cifar_resnet20", Preprocess(16), ("a", "b", "c")), tmp_path / "net")
    change(tmp_path / "net" / "model.json", edit)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(tmp_path / "net")
    assert "net" in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_what_a_library_says_of_a_file_is_cut_short(tmp_path: Path) -> None:
    net = build("cifar_resnet20", 3).eval()
    save_model(Model(net, "cifar_resnet20", Preprocess(16), ("a", "b", "c")), tmp_path)
    header = json.dumps({"x": {"dtype": "x" * 10_000, "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match=r"model\.safetensors") as caught:
        load_model(tmp_path)
    assert len(str(caught.value)) < 1000


# Losses, plans and latency tables of another network, or of none.


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record["groups"].popitem(),
        lambda record: record["groups"].update(other=next(iter(record["groups"].values()))),
        lambda record: record["removals"].update(other=0.1),
        lambda record: next(iter(record["groups"].values())).update(units=[1], loss=[0.0], order=[0]),
    ],
)
def test_losses_of_another_network(tmp_path: Path, structure: Structure, edit: Callable[[Any], object]) -> None:
    groups = {
        g.name: {"units": [1, g.units], "loss": [1, 0], "order": list(range(g.units))} for g in structure.coupling
    }
    record = {"groups": groups, "removals": {s.name: 0.1 for s in structure.segments if s.removable}}
    write_json(tmp_path / "losses.json", record)
    load_losses(tmp_path, structure)
    change(tmp_path / "losses.json", edit)
    with pytest.raises(PipelineError, match=r"losses\.json has other groups or blocks"):
        load_losses(tmp_path, structure)


def test_of_the_losses_before_a_kill_only_the_networks_groups_are_kept(tmp_path: Path, structure: Structure) -> None:
    name, units = next((g.name, g.units) for g in structure.coupling)
    curve = {"units": [1, units], "loss": [1, 0], "order": list(range(units))}
    write_json(tmp_path / "losses.json", {name: curve, "other": curve})
    assert list(before_a_kill(tmp_path / "losses.json", structure.coupling)) == [name]


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record["groups"].append(record["groups"][0]),
        lambda record: record["groups"][0].update(kept=[0, 99], after=2),
        lambda record: record["groups"][0].update(kept=[]),
        lambda record: record["before"].update(macs=0),
        lambda record: record.update(latency=[0, 1]),
    ],
)
def test_a_plan_that_cannot_be(tmp_path: Path, plan: WidthPlan, edit: Callable[[Any], object]) -> None:
    write_json(tmp_path / "plan.json", plan.to_json())
    WidthPlan.read(tmp_path / "plan.json")
    change(tmp_path / "plan.json", edit)
    with pytest.raises(PipelineError, match=r"plan\.json is damaged"):
        WidthPlan.read(tmp_path / "plan.json")


def test_a_plan_of_another_network(plan: WidthPlan, structure: Structure) -> None:
    assert plan.begins_with(structure.coupling)
    other = GroupPlan("other", "inner", 8, 8, tuple(range(8)))
    assert not WidthPlan((*plan.groups, other), plan.before, plan.after).begins_with(structure.coupling)
    assert not WidthPlan(plan.groups[1:], plan.before, plan.after).begins_with(structure.coupling)


def table(**more: Any) -> LatencyTable:
    kind = SegmentKind("a", (4,), (1,), (Layer(Side(3, (0,)), Side(0, (1,))),))
    rows = tuple(Row("a", (n,), float(n), float(n), float(n), 5) for n in range(1, 5))
    place = Machine("ort-x86", "onnxruntime", "1", "a processor", "x86_64", 1, 1)
    member = Member("a", "a", ("a",), False)
    fields = {"groups": {"a": 4}, "rows": rows, **more}
    return LatencyTable("net", place, False, kinds=(kind,), segments=(member,), networks=(), summary={}, **fields)


def test_a_group_in_no_segment_costs_nothing_at_any_width() -> None:
    assert LatencyModel(table(groups={"a": 4, "b": 3})).candidates("b") == (3,)


@pytest.mark.parametrize("ms", [1e308, 1e-320])
def test_a_time_that_nothing_takes(tmp_path: Path, ms: float) -> None:
    table().write(path := tmp_path / "latency_table.json")
    change(path, lambda record: record["rows"][0].update(ms=ms))
    with pytest.raises(ConfigError, match=r"latency_table\.json .*'rows\.0\.ms'"):
        LatencyTable.read(path)


def test_a_table_of_another_network_is_named() -> None:
    with pytest.raises(ConfigError, match=r"the table t\.json was measured for another network"):
        table().check("other", TargetConfig(), None, name="the table t.json")


# A profiling kit.


def kit_of(folder: Path) -> Path:
    """Of one segment whose groups do not stand in the order of their names, as JSON sorts them."""
    kind = SegmentKind("s", (2, 4), (1, 1), (Layer(Side(0, (1, 0)), Side(0, (0, 1))),))
    pieces = [
        Piece(f"s~{'-'.join(map(str, units))}", "segment", "s", dict(zip(("z", "a"), units, strict=True)))
        for units in {*rungs(kind), (2, 4)}
    ]
    reference = Piece("reference", "segment", "s", {})
    manifest = kit.KitManifest(
        **vars(kit.GuestManifest.of(TargetConfig(), [reference, *pieces], 0, kit.FAST)),
        pieces=tuple(pieces),
        network="net",
        target="ort-x86",
        batch=1,
        groups={"z": 2, "a": 4},
        unit={"z": 1, "a": 1},
        kinds=(replace(kind, layers=()),),
        segments=(Member("s", "s", ("z", "a"), removable=False),),
    )
    kit.write_manifest(folder, manifest)
    place = {"version": "1", "device": "d", "machine": "m", "pair_sums": ""}
    rows = [{"name": p.name, "rounds": [[1.0, 1.0]] * 2, "reference": [[1.0, 1.0]] * 2, "place": place} for p in pieces]
    (folder / kit.RESULTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_widths_are_told_by_their_groups_names(tmp_path: Path) -> None:
    rows = import_kit(kit_of(tmp_path), TargetConfig()).rows
    assert {row.units for row in rows} == {(1, 3), (1, 4), (2, 2), (2, 4)}


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record["pieces"].clear(),
        lambda record: record["segments"][0].update(groups=["z"]),
        lambda record: record["segments"][0].update(kind="other"),
        lambda record: record["pieces"][0].update(shapes=[[1, 2, 3, 3]]),
        lambda record: record["pieces"][0].update(shapes=[[1]]),
        lambda record: record["pieces"][0].update(removed=["other"]),
        lambda record: record["kinds"][0].update(units=[2, 9]),
    ],
)
def test_a_kit_that_does_not_hold_what_a_table_needs(tmp_path: Path, edit: Callable[[Any], object]) -> None:
    change(kit_of(tmp_path) / kit.DESCRIBED, edit)
    with pytest.raises(ConfigError, match=r"manifest\.json is damaged"):
        import_kit(tmp_path, TargetConfig())


# Measurements.


def test_predictions_that_rank_no_class(tmp_path: Path) -> None:
    save_predictions(corpus.predictions_of(Path("net.onnx"), 0), corpus.images(), path := tmp_path / "kept.npz")
    with np.load(path) as file:
        held = {name: file[name] for name in file.files}
    np.savez(path, **{**held, "ranked": held["ranked"][:, :0]})
    with pytest.raises(DataError, match=r"kept\.npz is damaged: it ranks 0 of 10 classes"):
        load_predictions(path, corpus.images())


def test_an_interval_beside_its_estimate_is_drawn() -> None:
    assert _reach((1.0, 1.1, 1.2)) == [[0.0], [pytest.approx(0.2)]]


# ONNX files.


def model_of(weight: onnx.TensorProto, **props: str) -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["d"]),
        helper.make_node("Add", ["d", "w"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "scale")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [scale, weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, props)
    return model


@pytest.mark.parametrize("how", ["type", "values", "shape"])
def test_a_constant_that_is_none(tmp_path: Path, how: str) -> None:
    weight = numpy_helper.from_array(np.ones(2, np.float32), "w")
    if how == "type":
        weight.data_type = 99
    elif how == "values":
        weight.raw_data += b"\0"
    else:
        weight.dims[0] = 7
    (tmp_path / "net.onnx").write_bytes(model_of(weight).SerializeToString())
    with pytest.raises(ModelError, match=r"net\.onnx is not a whole ONNX file"):
        lint_file(tmp_path / "net.onnx", "ort-x86")


def test_damaged_metadata_names_its_file(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones(2, np.float32), "w")
    onnx.save(model_of(weight, **{"compress.arch": "x"}), path := tmp_path / "net.onnx")
    for use in (open_engine, lint_file):
        with pytest.raises(EngineError, match=r"net\.onnx has no usable 'compress\.\*' metadata"):
            use(path)


def test_a_file_that_is_too_large_for_onnx_is_not_read(tmp_path: Path) -> None:
    (path := tmp_path / "net.onnx").touch()
    os.truncate(path, 1 << 42)
    with pytest.raises(ModelError, match=r"net\.onnx has 4398046511104 bytes"):
        lint_file(path, "ort-x86")


# Images and configurations.


def test_a_link_that_leads_to_itself_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "2.png").symlink_to("2.png")
    files = files_of([read_folder(tmp_path, "eval")])
    assert [path.name for path, fault in zip(files, faults(files), strict=True) if fault] == ["2.png"]


def test_a_list_of_images_that_fills_the_disk_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").touch()
    os.truncate(tmp_path / "labels.csv", 1 << 42)
    with pytest.raises(DataError, match=r"labels\.csv is larger than 256 MiB"):
        read_folder(tmp_path, "eval")


@pytest.mark.parametrize("table", ["file,label\n{},0\n", "{},label\n1.png,0\n", "file,label\n1.png,{}\n"])
def test_a_long_cell_is_not_printed_whole(tmp_path: Path, table: str) -> None:
    (tmp_path / "labels.csv").write_text(table.format("x" * 100_000))
    with pytest.raises(DataError, match=r"labels\.csv") as caught:
        read_folder(tmp_path, "eval")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 100_000 + "]" * 100_000,
        "run.seed = " + "9" * 5000,
        "a." * 30_000 + "b = 1",
        "x = '" + "y" * (2 << 20),
    ],
)
def test_toml_that_breaks_its_reader(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.toml"):
        load_config(tmp_path / "c.toml")


@pytest.mark.parametrize("value", ["[" * 100_000, "9" * 5000, "x" * 10_000])
def test_an_override_that_breaks_its_reader(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"train.epochs={value}"])
    assert len(str(caught.value)) < 1000
