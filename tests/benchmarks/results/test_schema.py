"""Every JSON file is written from the form that it is read into, and the schema describes that form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import TypeAdapter

from benchmarks.profiling.kit import Effort
from benchmarks.results import accuracy, base, latency, networks, nodes, plans, rivals, trust
from benchmarks.results.accuracy import Accuracy, AccuracyResult
from benchmarks.results.base import Artifact, BackendInfo, Bounds, Host, Record, Tool, Verdict, dump
from benchmarks.results.latency import Contention, LatencyResult, MachineState, Monitor, Scenario, Summary
from benchmarks.results.networks import MeasuredNetwork, ParetoFile, SummaryFile
from benchmarks.results.plans import PlanLatencyFile, PlanRatio
from benchmarks.results.rivals import (
    Int8LossesFile,
    LossCell,
    PrunedNetwork,
    PruningFile,
    QuantizationFile,
    QuantizedNetwork,
    Rough,
    Step,
)
from benchmarks.results.schema import FILES, json_schema, schema_of
from benchmarks.results.trust import TrustFile
from calibration.preprocess import Preprocess
from compress.config import TargetConfig
from compress.engines.auto import AutoFile, Measured
from compress.engines.harness import Interval
from compress.engines.metadata import Metadata
from compress.export.parity import Parity
from compress.export.stage import Exported, ExportFile
from compress.files import to_json
from compress.graph.plan import GroupPlan, WidthPlan
from compress.models.cost import Cost
from compress.parse import parse, read
from compress.run import Run, read_manifest
from compress.train.history import Epoch, History, HistoryFile

BOUNDS = Bounds(value=0.5, lo=0.4, hi=0.6)
HOST = Host(cpu="a processor", cores=2, memory_bytes=1, system="a system", python="3", gpus=[], libraries={"a": "1"})
STATE = MachineState(
    load_1min=None,
    busy_percent=1.0,
    available_bytes=1,
    governor=None,
    frequency_mhz=None,
    temperature_c=None,
    affinity=[0],
    throttled=None,
    gpus=[],
)
COMMON: dict[str, Any] = {
    "run_id": "0",
    "date": "2026-01-01T00:00:00+00:00",
    "tool": Tool(version="1", git_sha=None),
    "argv": [],
    "config": {"threads": 1},
    "artifact": Artifact(path="caf\udce9.onnx", sha256="0", bytes=9),
    "backend": BackendInfo(name="onnxruntime", version="1", requested="CPU", actual="CPU"),
    "host": HOST,
    "modes": {"threads": 1},
    "warnings": [],
    "verdict": Verdict(status="INVALID", reasons=["busy"]),
}
SCENARIO = Scenario(
    name="single-stream",
    batch=1,
    shape=[1, 3, 8, 8],
    inputs="noise",
    pool=4,
    inner=1,
    streams=1,
    processes=1,
    rounds=2,
    processors=[],
    interleaved_with=[],
)
STATS = Summary(n=2, min=1.0, mean=1.0, median=BOUNDS, stdev=0.0, cv=0.0, mad=0.0, percentiles={"p90": None})
LATENCY = LatencyResult(
    **COMMON,
    device="cpu",
    scenario=SCENARIO,
    stats={"latency_ms": STATS},
    load_ms=1.0,
    first_inference_ms=1.0,
    peak_memory_bytes=1,
    throughput=BOUNDS,
    outliers=0,
    samples_ns=[[1], [2]],
    monitor=Monitor(before=STATE, after=STATE),
    contention=Contention(waited=None, others=0.0),
    pace=None,
    work=None,
    comparison=None,
)
ACCURACY = AccuracyResult(**COMMON, images=2, top1=Accuracy(correct=1, value=BOUNDS), top5=None, paired=None)
METADATA = Metadata("tiny", "int8", Preprocess(8), ("a", "b"), 1000, 100, "ort-x86", "1")
NETWORK = MeasuredNetwork.of("pruned INT8", METADATA, ACCURACY, LATENCY, 0.6)
PLAN = WidthPlan((GroupPlan("a", "inner", 8, 6, tuple(range(6))),), Cost(100, 10), Cost(50, 5), ("b",), (4.0, 2.0))
CELLS = (LossCell("a", 8, 4, 0.1, 0.2),)

WRITTEN: dict[str, Record] = {
    "summary.json": SummaryFile(title="a title", rows=(NETWORK,), plan=PLAN),
    "pareto.json": ParetoFile(title="a title", rows=(NETWORK,)),
    "quantization.json": QuantizationFile(
        title="a title",
        host=HOST,
        warnings=["a warning"],
        rows=(
            QuantizedNetwork(name="a", file="b", steps=(Step("c", 1.0, 0.0, 1, 2),), sqnr_db=None, accuracy=ACCURACY),
        ),
    ),
    "pruning.json": PruningFile(
        host=HOST,
        rows=(
            PrunedNetwork(
                name="a",
                peer=True,
                macs=0.5,
                top1_fp32=1.0,
                top1_int8=0.5,
                change=BOUNDS,
                seconds=None,
                latency=LATENCY,
            ),
        ),
        first_pass=(Rough("local-l2-8", 0.5, None, None, 0.1),),
    ),
    "int8_losses --json": Int8LossesFile(dense=0.1, cells=CELLS),
    "plan_latency --json": PlanLatencyFile(
        target=TargetConfig(), effort=Effort(), plans=(PlanRatio(plan="plan.json", ratio=BOUNDS),)
    ),
    "trust --json": TrustFile(
        check="same",
        engine="a.onnx",
        tool=COMMON["tool"],
        host=HOST,
        before=STATE,
        after=STATE,
        title="a title",
        header=["a"],
        rows=[["1"]],
        verdict="fine",
        results=(LATENCY,),
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_is_read_again(name: str, tmp_path: Path) -> None:
    record = WRITTEN[name]
    record.write(path := tmp_path / "file.json")
    found = read(path, type(record), remedy="")
    assert type(record) is FILES[name].form
    assert to_json(found.model_dump(mode="json")) == to_json(record.model_dump(mode="json")).replace("\\udce9", "\\xe9")
    jsonschema.validate(json.loads(path.read_text()), schema_of(name))


def test_what_a_stage_writes_is_read_again(tmp_path: Path) -> None:
    """Forms of ``compress``; those that a stage reads itself are tested beside it."""
    auto = AutoFile("a", "a reason", (Measured("a", Interval(1.0, 0.9, 1.1), None, ("noisy",)),), {"b": "absent"})
    export: ExportFile = {"a.onnx": Exported(9, {"torch": Parity(1, 0.0, 0.0, 1.0, None)})}
    for name, value in (("auto.json", auto), ("export.json", export)):
        form = FILES[name].form
        text = to_json(TypeAdapter[Any](form).dump_python(value, mode="json"))
        assert parse(text, form, name, remedy="") == value
        jsonschema.validate(json.loads(text), schema_of(name))
    history = History((Epoch(0, None, 0.1, 0.5, 1.0), Epoch(1, 0.3, 0.1, None, 1.0)), 1).to_json()
    assert parse(to_json(history), HistoryFile, "history.json", remedy="").best == 1
    folder = Run(tmp_path).stage("prune", lambda out, _: (out / "a").write_text(""), settings={"seed": 1})
    assert read_manifest(folder).settings == {"seed": 1}
    jsonschema.validate(json.loads((folder / "stage.json").read_text()), schema_of("stage.json"))


def test_a_results_file_is_an_array() -> None:
    jsonschema.validate(json.loads(dump([LATENCY])), schema_of("latency --json"))
    jsonschema.validate(json.loads(dump([ACCURACY])), schema_of("accuracy --json"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(dump([ACCURACY])), schema_of("latency --json"))


def test_the_schema_is_one_and_refuses_what_no_reader_takes() -> None:
    whole = json_schema()
    jsonschema.Draft202012Validator.check_schema(whole)
    assert whole["files"].keys() == FILES.keys()
    record = json.loads(to_json(WRITTEN["summary.json"].model_dump(mode="json")))
    del record["rows"][0]["latency_ms"]
    with pytest.raises(jsonschema.ValidationError, match="latency_ms"):
        jsonschema.validate(record, schema_of("summary.json"))


def test_every_field_of_a_result_file_is_described() -> None:
    """Or is a form of its own, which says what it is."""
    modules = (accuracy, base, latency, networks, nodes, plans, rivals, trust)
    ours = {
        name
        for module in modules
        for name, one in vars(module).items()
        if getattr(one, "__module__", "") == module.__name__
    }
    defs = json_schema()["$defs"]
    assert ours & defs.keys() >= {"LatencyResult", "MeasuredNetwork", "Step"}
    undescribed = [
        f"{form}.{name}"
        for form in ours & defs.keys()
        for name, field in defs[form].get("properties", {}).items()
        if not {"description", "$ref", "anyOf", "const"} & field.keys()
    ]
    assert undescribed == []
    for form in ("KitManifest", "Manifest", "Sidecar", "AutoFile"):  # whose docstrings describe them
        assert all({"description", "$ref"} & field.keys() for field in defs[form]["properties"].values()), form
