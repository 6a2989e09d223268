"""Plans timed as whole networks on the real engine. No time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import plan_latency
from benchmarks.profiling import plans
from benchmarks.profiling.kit import Effort
from calibration.preprocess import Preprocess
from compress.errors import ConfigError
from compress.files import write_json
from compress.graph.plan import WidthPlan
from compress.graph.structure import Structure
from compress.models.cost import count
from compress.models.model import Model, save_model
from compress.models.registry import build
from compress.prune.iterative import untouched
from compress.run import Run

ARCH = "tiny_resnet:TinyResNet"
PREPROCESS = Preprocess(size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline, a plan that takes half of every group and a block, and another network's plan."""
    folder = tmp_path_factory.mktemp("plans")

    def work(out: Path, scratch: Path) -> None:
        torch.manual_seed(0)
        save_model(Model(build(ARCH, 3).eval(), ARCH, PREPROCESS, ("a", "b", "c")), out)

    Run(folder).stage("baseline", work, settings={})
    net = build(ARCH, 3).eval()
    structure = Structure.of(net, PREPROCESS.shape)
    plan = untouched(structure.coupling, count(net, PREPROCESS.shape), 1.0).to_json()
    plan["latency"] = (1.0, 0.4)
    plan["removed"] = [next(segment.name for segment in structure.segments if segment.removable)]
    for group in plan["groups"]:
        group["kept"] = group["kept"][::2]
        group["after"] = group["before"] // 2
    write_json(folder / "half.json", plan)
    plan["groups"][0]["before"] += 8
    write_json(folder / "foreign.json", plan)
    return folder


def command(folder: Path, *more: str) -> int:
    return plan_latency.main(["--model", str(folder / "baseline"), "--trust", *more])


def test_plans_are_measured_against_the_unpruned_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plans, "EFFORT", Effort(4, 0.001))
    files = [str(folder / "half.json")] * 2
    assert command(folder, "--plan", *files, "--threads", "1", "--json", str(folder / "answer.json")) == 0
    answer = json.loads((folder / "answer.json").read_text())
    assert [one["plan"] for one in answer["plans"]] == files
    assert all(0 < one["ratio"]["lo"] <= one["ratio"]["hi"] for one in answer["plans"])
    assert answer["target"]["name"] == "ort-x86"
    assert "0.400" in capsys.readouterr().out


def test_the_network_that_is_timed_has_the_plans_widths(folder: Path) -> None:
    plan = WidthPlan.read(folder / "half.json")
    piece = plans.piece_of("half", plan)
    assert piece.units == {group.name: len(group.kept) for group in plan.groups}
    assert piece.removed == plan.removed


def test_a_wrong_plan_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("foreign.json", "baseline/model.json"):
        assert command(folder, "--plan", str(folder / wrong)) == ConfigError.exit_code
        assert wrong in capsys.readouterr().err
    assert command(folder, "--plan", str(folder / "none.json")) == 1
    assert command(folder / "none", "--plan", str(folder / "half.json")) == 1
