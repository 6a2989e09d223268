"""Profiles of real engines, and what their numbers mean. No time is asserted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_resnet import TinyResNet

from benchmarks.latency import main
from benchmarks.nodes.origins import Origins, exported_file
from benchmarks.nodes.profile import NodeProfile, NodeRecord, by_layer, check, layer_rows, mapped, node_rows
from benchmarks.nodes.timing import Timed, mean_since, medians, runs_of
from benchmarks.timing.worker import Settings
from calibration.preprocess import Preprocess
from compress.config import TargetConfig
from compress.engines.base import build_engine
from compress.engines.metadata import Metadata
from compress.errors import ConfigError, EngineError
from compress.export.onnx import export_onnx
from compress.export.qdq import module_of

METADATA = Metadata("tiny", "fp32", Preprocess(size=8), ("a", "b", "c"), 1, 1, "", "0.1.0")
FAST = ["--fast", "--processes", "1", "--duration", "0.05", "--iterations", "5", "--warmup", "0.01"]
CONVOLUTIONS = [*(f"blocks.{block}.conv{conv}" for block in (0, 1) for conv in (1, 2)), "stem"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "export" / "tiny_fp32.onnx"
    path.parent.mkdir()
    export_onnx(torch.fx.symbolic_trace(TinyResNet().eval()), path, METADATA, 20)
    return path


def profiled(engine: Path, out: Path, *more: str) -> NodeProfile:
    assert main(["--engine", str(engine), *FAST, "--export-profile", str(out), *more]) in (0, 4)  # 4: a busy machine
    return NodeProfile.model_validate_json(out.read_bytes())


def convolved(profile: NodeProfile) -> list[str]:
    return sorted(str(node.layer) for node in profile.nodes if "Conv" in node.op)


def test_onnxruntime_by_node_and_layer(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = profiled(exported, tmp_path / "profile.json")
    assert convolved(profile) == CONVOLUTIONS
    assert [node.layer for node in profile.nodes if "Gemm" in node.op] == ["fc"]
    graph = onnx.load(exported).graph
    assert {node.node for node in profile.nodes} - {None} <= {node.name for node in graph.node}
    assert profile.schema_version == 3
    assert (profile.runs, profile.statistic) == (100, "median")
    assert Path(profile.artifact.path) == exported
    assert profile.latency_ms.value > 0
    printed = capsys.readouterr().out
    assert "| node " in printed
    assert "| blocks.0.conv1 " in printed
    assert "measured without profiling" in printed
    assert [file.name for file in tmp_path.iterdir()] == ["profile.json"]


def test_openvino_by_node_and_layer(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    engine = build_engine("openvino", exported, exported.parents[1] / "build", TargetConfig())
    profile = profiled(engine, tmp_path / "profile.json", "--batch", "32")  # OpenVINO counts whole microseconds
    assert convolved(profile) == CONVOLUTIONS
    assert profile.statistic == "mean"
    alone = tmp_path / "alone"
    shutil.copytree(engine.parent, alone)
    assert exported_file(alone / engine.name) is None
    shutil.copy(exported, alone)
    assert exported_file(alone / engine.name) == alone / exported.name
    (alone / exported.name).write_bytes(b"another file of that name")
    assert exported_file(alone / engine.name) is None


def test_a_file_without_names(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(exported)
    for node in model.graph.node:
        node.name = ""
        del node.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    profile = profiled(tmp_path / "bare.onnx", tmp_path / "profile.json")
    assert profile.nodes
    assert profile.layers == []
    assert {node.layer for node in profile.nodes} == {None}
    assert any("the nodes of bare.onnx have no names" in warning for warning in profile.warnings)
    assert "time per layer" not in capsys.readouterr().out


def test_a_foreign_file_to_standard_output(int8_onnx: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--engine", str(int8_onnx), *FAST, "--export-profile", "-"]) in (0, 4)
    profile = json.loads(capsys.readouterr().out)
    assert profile["kind"] == "node-profile"
    names = {node.name for node in onnx.load(int8_onnx).graph.node}
    assert {node["node"] for node in profile["nodes"] if "Conv" in node["op"] or "Gemm" in node["op"]} <= names


@pytest.mark.parametrize(
    ("engines", "device", "target", "said"),
    [
        (["a.onnx", "b.onnx"], None, "out.json", "one engine, not 2"),
        (["a.plan"], None, "out.json", "TensorRT"),
        (["a.pt"], None, "out.json", "'.pt'"),
        (["a.onnx"], "cuda", "out.json", "GPU"),
        (["a.onnx"], None, ".", "cannot be written"),
        (["a.onnx"], None, "file/out.json", "cannot be written"),
    ],
)
def test_refused_before_anything_is_measured(
    engines: list[str],
    device: str | None,
    target: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    target = str(tmp_path / target)
    with pytest.raises((ConfigError, EngineError), match=said) as caught:
        check([Path(engine) for engine in engines], Settings(device=device), target)
    flags = ["--device", device] if device else []
    assert main(["--engine", *engines, *flags, "--export-profile", target]) == caught.value.exit_code
    assert said in capsys.readouterr().err


def event(name: str, ts: int, dur: int, cat: str = "Node", op: str = "") -> dict[str, Any]:
    return {"cat": cat, "name": name, "ts": ts, "dur": dur, "args": {"op_name": op}}


def test_events_belong_to_the_run_that_they_lie_in() -> None:
    events = [
        event("model_loading_uri", 0, 9, "Session"),
        event("conv_kernel_time", 11, 5, op="Conv"),
        event("conv_fence_before", 10, 1, op="Conv"),
        event("fc_kernel_time", 16, 2, op="Gemm"),
        event("model_run", 10, 9, "Session"),
        event("conv_kernel_time", 31, 7, op="Conv"),
        event("fc_kernel_time", 38, 3, op="Gemm"),
        event("model_run", 30, 12, "Session"),
    ]
    assert list(runs_of(events)) == [
        [Timed("conv", "Conv", 5), Timed("fc", "Gemm", 2)],
        [Timed("conv", "Conv", 7), Timed("fc", "Gemm", 3)],
    ]
    with pytest.raises(EngineError, match="different nodes"):
        medians([*runs_of(events), [Timed("conv", "Conv", 5)]])
    with pytest.raises(EngineError, match="different nodes"):
        medians([])


def node(op: str, name: str, inputs: str, output: str, layer: str) -> onnx.NodeProto:
    made = onnx.helper.make_node(op, inputs.split(), [output], name=name)
    made.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=str(["", layer, name]))
    return made


def test_names_that_runtimes_make_lead_back_to_the_file() -> None:
    graph = SimpleNamespace(
        node=[
            node("Conv", "node_conv", "x w", "conv", "stem"),
            node("Relu", "node_relu", "conv", "relu", "relu"),
            node("Gemm", "node_fc", "relu v", "fc", "head"),
            node("Relu", "", "fc", "", "unnamed"),
        ]
    )
    origins = Origins.of(graph)  # type: ignore[arg-type]
    for name, op, layer in [
        ("node_conv_token_12", "QLinearConv", "stem"),
        ("relu_nchwc", "Conv", "stem"),  # a convolution that took in the ReLU has its output's name
        ("relu_nchwc", "Relu", "relu"),
        ("node_conv/WithoutBiases", "Convolution", "stem"),
        ("node_fc/WithoutBiases/DequantizationMultiply", "FullyConnectedQuantizedLegacy", "head"),
    ]:
        found = origins.find(name, op)
        assert found is not None
        assert module_of(found) == layer
    for name in ("Transpose_token_70", "_token_1", "x_abcd_acdb_node_conv/WithoutBiases"):
        assert origins.find(name, "Transpose") is None


@given(st.lists(st.integers(1, 1000), min_size=3, max_size=50), st.data())
def test_running_means_are_undone(times: list[int], data: st.DataObject) -> None:
    warm = data.draw(st.integers(1, len(times) - 1))
    before, after = ([Timed("conv", "Convolution", sum(part) / len(part))] for part in (times[:warm], times))
    rest = times[warm:]
    (node,) = mean_since(before, warm, after, len(times))
    assert node.us == pytest.approx(sum(rest) / len(rest))
    assert mean_since([Timed("fused", "Add", 0)], 1, [Timed("fused", "Add", 0)], 2) == []


layer_names = st.sampled_from([None, "", "stem", "layer1.0.conv1", "fc"])
timed = st.lists(st.tuples(layer_names, st.integers(0, 500)), min_size=1, max_size=40)


@given(timed)
def test_nothing_is_lost_between_the_tables(parts: list[tuple[str | None, int]]) -> None:
    nodes = mapped([Timed(f"n{i}", "Conv", us) for i, (_, us) in enumerate(parts)], Origins({}, {}))
    nodes = [NodeRecord(**{**one.model_dump(), "layer": layer}) for one, (layer, _) in zip(nodes, parts, strict=True)]
    total = sum(us for _, us in parts)
    assert sum(one.share for one in nodes) == pytest.approx(1 if total else 0)
    assert sum(int(row[3]) for row in node_rows(nodes)) == total
    layers = by_layer(nodes)
    if any(layer is not None for layer, _ in parts):
        assert sum(int(row[1]) for row in layer_rows(layers)) == len(nodes)
        assert sum(layer.us for layer in layers) == total
        assert [one.us for one in layers] == sorted((one.us for one in layers), reverse=True)
    else:
        assert layers == []


def test_nodes_of_several_streams_are_not_timed() -> None:
    with pytest.raises(ConfigError, match="for one stream"):
        check([Path("a.onnx")], Settings(streams=2), "out.json")
