"""docs/security.md, line by line: what a file may run, and what never does."""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from markdown_it import MarkdownIt
from onnx import TensorProto, helper, numpy_helper

from benchmarks.evaluation.predictions import load_predictions
from benchmarks.profiling.kit import read_manifest
from benchmarks.results.latency import load_latency
from benchmarks.results.tables import markdown
from calibration.datasets import load_data
from calibration.preprocess import Preprocess
from compress.engines.base import open_engine
from compress.engines.sidecar import read_sidecar
from compress.errors import CheckpointError, DataError, EngineError, ModelError, PipelineError
from compress.export.lint import lint_file
from compress.models.checkpoint import read_state
from compress.models.model import ANY, Model, load_model, save_model
from compress.models.registry import build
from compress.train.snapshot import StateFile

EVIL = """
from pathlib import Path
Path({marker!r}).touch()
from torch import nn
def net(num_classes=3):
    return nn.Sequential(nn.Conv2d(3, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that is there once code has run that should not."""
    return tmp_path / "ran"


class Bomb:
    """Unpickling this touches a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def sent(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder that somebody has sent, with the module of its factory beside it."""
    (tmp_path / "evil_nets.py").write_text(EVIL.format(marker=str(marker)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "evil_nets", raising=False)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    save_model(Model(net.eval(), "evil_nets:net", Preprocess(size=8), ("a", "b", "c")), tmp_path / "sent")
    return tmp_path / "sent"


def naming(folder: Path, arch: str, **args: object) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"arch": arch, "args": args}))


def test_a_model_json_imports_nothing_on_its_own_word(sent: Path, marker: Path) -> None:
    with pytest.raises(CheckpointError, match=r"evil_nets:net(.|\n)*set model\.arch=evil_nets:net(.|\n)*--trust"):
        load_model(sent)
    with pytest.raises(CheckpointError, match="is not followed"):
        load_model(sent, "other_nets:net")
    assert not marker.exists()


@pytest.mark.parametrize("factory", ["evil_nets:net", ANY])
def test_a_factory_that_the_user_names_is_imported(sent: Path, factory: str) -> None:
    assert load_model(sent, factory).classes == ("a", "b", "c")


@pytest.mark.parametrize("command", ["latency", "accuracy", "plan_latency"])
def test_no_command_runs_what_a_model_json_says(sent: Path, marker: Path, command: str) -> None:
    naming(sent, "os:system", command=f"touch {marker}")
    engine = ["--engine", str(sent / "model.safetensors")]
    more = {"accuracy": ["--data", "digits"], "plan_latency": ["--plan", str(sent / "plan.json")]}.get(command, [])
    chosen = ["--model", str(sent)] if command == "plan_latency" else engine
    (sent / "plan.json").write_text(
        '{"groups": [], "before": {"macs": 1, "params": 1}, "after": {"macs": 1, "params": 1}}'
    )
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{command}", *chosen, *more], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "os:system" in done.stderr
    assert "Traceback" not in done.stderr
    assert not marker.exists()


@pytest.mark.parametrize(
    "arch", ["os:system", "builtins:exec", "subprocess:Popen", "torch.nn:functional", "os.path:join"]
)
def test_not_even_a_trusted_name_can_be_anything(sent: Path, marker: Path, arch: str) -> None:
    naming(sent, arch, command=f"touch {marker}")
    with pytest.raises(PipelineError, match=r"not a factory of networks|failed"):
        load_model(sent, ANY)
    with pytest.raises(ModelError, match=r"not a factory of networks|failed"):
        build(arch)
    assert not marker.exists()


def test_a_checkpoint_runs_nothing(tmp_path: Path, marker: Path) -> None:
    for name, legacy in (("new.pth", False), ("old.pth", True)):
        torch.save({"a": Bomb(marker)}, tmp_path / name, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(CheckpointError, match="refused"):
            read_state(tmp_path / name)
    assert not marker.exists()


def test_a_training_state_runs_nothing(tmp_path: Path, marker: Path) -> None:
    net = torch.nn.Linear(1, 1)
    state = StateFile(tmp_path / "training.pt", "job", {"net": net})
    torch.save({"job": Bomb(marker)}, state.path)
    assert state.load(torch.device("cpu")) is None
    assert not marker.exists()


def test_results_hold_numbers_and_text(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps([{"kind": f"__import__('os').system('touch {marker}')", "schema_version": 3}]))
    with pytest.raises(PipelineError, match="not 'latency'"):
        load_latency(path)
    assert not marker.exists()


def test_an_imported_kit_runs_nothing(tmp_path: Path, marker: Path) -> None:
    (tmp_path / "measure.py").write_text(EVIL.format(marker=str(marker)))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(PipelineError, match=r"manifest\.json is damaged"):
        read_manifest(tmp_path)
    assert not marker.exists()


def test_predictions_hold_no_objects(tmp_path: Path, marker: Path) -> None:
    np.savez(tmp_path / "kept.npz", schema_version=np.array(Bomb(marker), dtype=object))
    digits = load_data("digits").eval
    assert digits is not None
    with pytest.raises(DataError, match="does not hold predictions"):
        load_predictions(tmp_path / "kept.npz", digits)
    assert not marker.exists()


@pytest.fixture
def escaping(tmp_path: Path) -> Path:
    """An ONNX file whose weights are said to lie outside of its folder."""
    (tmp_path / "secret.bin").write_bytes(np.ones(4, np.float32).tobytes())
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../secret.bin"), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    path = tmp_path / "sent" / "net.onnx"
    path.parent.mkdir()
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    )
    return path


def test_external_data_stay_in_the_files_folder(escaping: Path) -> None:
    assert onnx.load(escaping, load_external_data=False).graph.initializer[0].external_data
    with pytest.raises(EngineError, match="cannot load"), open_engine(escaping):
        pass
    with pytest.raises(PipelineError):
        lint_file(escaping, "ort-x86")


def test_a_sidecar_is_read_as_numbers_and_text(tmp_path: Path, marker: Path) -> None:
    (tmp_path / "net.onnx.json").write_text(json.dumps({"sha256": f"$(touch {marker})", "engine": "os:system"}))
    with pytest.raises(EngineError, match="is damaged"):
        read_sidecar(tmp_path / "net.onnx")
    assert not marker.exists()


def test_names_in_tables_are_text() -> None:
    name = "[a](javascript:x) <script>|`![b](c)"
    page = MarkdownIt("commonmark").enable("table").render(markdown(["name"], [[name]]))
    assert html.escape(name) in page
    assert not any(tag in page for tag in ("<script", "<a ", "<img", "<code"))


def test_a_write_does_not_follow_a_link(tmp_path: Path) -> None:
    from compress.files import write_atomic

    victim = tmp_path / "victim"
    victim.write_text("as it was")
    (tmp_path / "result.json").symlink_to(victim)
    for pid in range(os.getpid() - 5, os.getpid() + 5):  # a name that could be foreseen
        (tmp_path / f".result.json.{pid}").symlink_to(victim)
    write_atomic(tmp_path / "result.json", "new")
    assert victim.read_text() == "as it was"
    assert (tmp_path / "result.json").read_text() == "new"
