from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from benchmarks.rivals.pruning import difference, main
from benchmarks.rivals.pruning_nets import fitted, macs_share, widest
from benchmarks.rivals.pruning_peer import Rough, finalists
from benchmarks.rivals.pruning_stage import main as stage
from calibration.preprocess import Preprocess
from compress.models.model import Model, load_model, save_model
from compress.models.registry import build
from compress.run import Run

PREPROCESS = Preprocess(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained ResNet-20 as the stage ``baseline`` of a run."""

    def work(out: Path, scratch: Path) -> None:
        torch.manual_seed(0)
        net = build("cifar_resnet20_b", 10).eval()
        save_model(Model(net, "cifar_resnet20_b", PREPROCESS, tuple("0123456789")), out)

    return Run(tmp_path_factory.mktemp("run")).stage("baseline", work, settings={})


def _layer(ratio: float) -> nn.Module:
    return nn.Conv2d(1, round(200 * (1 - ratio)), 1)


def _width(net: nn.Module) -> float:
    assert isinstance(net, nn.Conv2d)
    return net.out_channels / 200


@given(st.floats(0.1, 0.95), st.floats(0.5, 2.0))
def test_a_net_is_fitted_just_within_its_budget(budget: float, power: float) -> None:
    found = widest(_layer, _width, budget)
    assert found is not None
    assert budget - 0.02 < found.share <= budget
    assert found.share == _width(found.net) == _width(_layer(found.ratio))
    timed, _ = fitted(_layer, _width, lambda net: 0.2 + 0.8 * _width(net) ** power, budget=max(budget, 0.3))
    assert timed is None or timed.share <= max(budget, 0.3)


def test_a_latency_that_follows_the_macs_is_met() -> None:
    asked: list[float] = []

    def latency(net: nn.Module) -> float:
        asked.append(_width(net))
        return 0.3 + 0.7 * _width(net)

    found, tried = fitted(_layer, _width, latency, 0.65)
    assert found is not None
    assert 0.63 < found.share <= 0.65
    assert [width for width, _ in tried] == asked
    assert len(asked) <= 3


def test_a_latency_out_of_reach_gives_nothing() -> None:
    assert fitted(_layer, _width, lambda net: 0.9, 0.5)[0] is None
    assert widest(_layer, lambda net: 1.0, 0.5) is None


def test_the_best_of_each_budget_go_on() -> None:
    roughs = [
        Rough("local-l2-8", 0.8, 0.1, 0.8, 0.3),
        Rough("local-l2-16", 0.8, 0.1, 0.8, 0.4),
        Rough("global-l2-8", 0.5, None, None, 0.0),
        Rough("global-obd-8", 0.5, 0.3, 0.5, 0.0),
    ]
    assert [(str(setting), budget) for setting, budget in finalists(roughs, 1)] == [
        ("local-l2-16", 0.8),
        ("global-obd-8", 0.5),
    ]


def test_difference_counts_pairs() -> None:
    first, second = np.array([True, True, False, False]), np.array([True, False, False, False])
    assert difference(first, second).value == 0.25
    assert difference(second, first).value == -0.25


def test_a_peer_takes_the_place_of_stage_prune(
    baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch_pruning")
    flags = ["--model", str(baseline), "--data", "digits", "--images", "20", "--setting", "global-taylor-4", "--macs"]
    assert stage([*flags, "--budget", "0.5", "--run", str(tmp_path / "peer")]) == 0
    run = Run(tmp_path / "peer")
    pruned = load_model(run.need("prune")).net
    assert 0.4 < macs_share(load_model(run.need("baseline")))(pruned) <= 0.5
    record = json.loads((run.folder("prune") / "peer.json").read_text())
    assert (record["setting"], record["of"]) == ("global-taylor-4", "MACs")
    written = (run.folder("prune") / "model.safetensors").stat().st_mtime_ns
    assert stage([*flags, "--budget", "0.5", "--run", str(tmp_path / "peer")]) == 0
    assert (run.folder("prune") / "model.safetensors").stat().st_mtime_ns == written

    assert stage([*flags, "--budget", "0.5", "--run", str(baseline.parent)]) == 2
    assert "own run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--peers"], "nothing to compare"),
        (["--peers", "local-l3-8"], "'local-l3-8' is not a way to prune"),
        (["--ours", "nowhere"], "nowhere is not a model folder"),
    ],
)
def test_usage_mistakes_exit_2(
    flags: list[str], message: str, baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = ["--model", str(baseline), "--data", "digits", "--eval", "digits", "--out", str(out), *flags]
    assert main(asked) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_a_budget_out_of_reach_leaves_no_stage(
    baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch_pruning")
    flags = ["--model", str(baseline), "--data", "digits", "--images", "20", "--setting", "local-l2-8", "--macs"]
    assert stage([*flags, "--budget", "0.001", "--run", str(tmp_path)]) == 1
    assert "found no net within 0.1%" in capsys.readouterr().err
    assert not (tmp_path / "prune").exists()


@pytest.mark.slow
def test_a_peer_is_fitted_quantized_and_timed_beside_ours(
    baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch_pruning")
    flags = ["--model", str(baseline), "--data", "digits", "--eval", "digits", "--images", "40", "--preset", "fast"]
    flags += ["--ours", str(baseline), "--peers", "local-l2-4", "global-l2-8", "--budgets", "0.8", "--finalists", "1"]
    assert main([*flags, "--out", str(tmp_path)]) in (0, 4)  # 4: the machine was busy
    assert "best INT8 top-1 within a latency" in capsys.readouterr().out
    record = json.loads((tmp_path / "pruning.json").read_text())
    dense, ours, peer = record["rows"]
    assert [row["peer"] for row in (dense, ours, peer)] == [False, False, True]
    assert (dense["macs"], ours["change"]["value"]) == (1, dense["change"]["value"])
    assert peer["macs"] < 1
    assert peer["latency"]["comparison"]["ratio"]["value"] < 0.95
    assert len(record["first_pass"]) == 2
    kept = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.onnx"))]
    assert len(kept) == 3
    assert main([*flags, "--out", str(tmp_path)]) in (0, 4)
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.onnx"))] == kept
