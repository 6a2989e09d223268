"""From a network to its latency table on the real engine, and what rows mean. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import latency_table
from benchmarks.profiling import kit, measure
from benchmarks.profiling.kit import FAST, Effort
from benchmarks.profiling.survey import Piece, Survey, ladder
from benchmarks.profiling.table import Timing, make_table, timings, with_steps
from calibration.preprocess import Preprocess
from compress.config import TargetConfig
from compress.engines.saturation import pair_sums
from compress.errors import BackendAbsent, ConfigError
from compress.models.model import Model, save_model
from compress.models.registry import build
from compress.parse import parse
from compress.prune.latency.machine import here
from compress.prune.latency.predictor import LatencyModel
from compress.prune.latency.table import LatencyTable, Layer, Machine, SegmentKind, Side
from compress.run import Run

ARCH = "tiny_resnet:TinyResNet"
PREPROCESS = Preprocess(size=8)
PLACE = Machine("ort-x86", "onnxruntime", "1", "a processor", "x86_64", 1, 1)


def tiny() -> nn.Module:
    """Two blocks alike, and a classifier."""
    return build(ARCH, 3)


@pytest.fixture(scope="module")
def survey() -> Survey:
    torch.manual_seed(0)
    return Survey(tiny().eval(), PREPROCESS, TargetConfig())


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    def work(out: Path, scratch: Path) -> None:
        save_model(Model(tiny().eval(), ARCH, PREPROCESS, ("a", "b", "c")), out)

    Run(tmp_path / "run").stage("baseline", work, settings={})
    return tmp_path / "run"


def command(folder: Path, *more: str) -> int:
    return latency_table.main(["--run", str(folder), "--set", f"model.arch={ARCH}", "--fast", *more])


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "FITTED", 4)
    monkeypatch.setattr(measure, "HELD_OUT", 2)
    monkeypatch.setattr(measure, "FAST", Effort(2, 0.001))


@pytest.mark.usefixtures("few")
def test_a_table_is_measured_and_what_is_there_is_not_measured_again(run_folder: Path) -> None:
    assert command(run_folder) == 0
    path = run_folder / measure.TABLE
    table = LatencyTable.read(path)
    table.check(table.network, TargetConfig(), here(TargetConfig()))
    assert {kind.name for kind in table.kinds} == {"stem", "blocks.0", "fc"}
    assert [m.kind for m in table.segments] == ["stem", "blocks.0", "blocks.0", "fc"]
    assert len(LatencyModel(table).errors) == 2
    (results,) = (run_folder / "latency").glob("*/results.jsonl")
    assert not list(results.parent.glob("*.onnx"))

    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(lines[:-3]) + lines[-3][:20])  # killed while it wrote
    path.write_text("{}")  # a table that cannot be read is replaced
    before = kit.results(results.parent)
    assert command(run_folder) == 0
    after = {row.name: row for row in kit.results(results.parent)}
    assert {json.loads(line)["name"] for line in lines if line.strip()} == after.keys()
    assert all(after[row.name] == row for row in before)


@pytest.mark.usefixtures("few")
def test_a_kit_runs_by_itself_and_comes_back_as_a_table(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kit"
    assert command(run_folder, "--emit-kit", str(folder)) == 0
    assert command(run_folder, "--emit-kit", str(folder)) == ConfigError.exit_code  # not empty
    assert command(run_folder, "--import-kit", str(folder)) == ConfigError.exit_code  # not measured yet
    script = [sys.executable, "-I", str(folder / kit.SCRIPT)]  # without this repository
    subprocess.run(script, cwd=tmp_path, check=True, capture_output=True)
    assert command(run_folder, "--import-kit", str(folder)) == 0
    table = LatencyTable.read(run_folder / measure.TABLE)
    assert table.imported
    assert table.place.device
    assert table.place.pair_sums == pair_sums("onnxruntime")
    assert command(run_folder) == ConfigError.exit_code  # what a device measured is not replaced
    assert LatencyTable.read(run_folder / measure.TABLE) == table
    assert command(run_folder, "--import-kit", str(folder), "--set", "target.batch=2") == ConfigError.exit_code


@pytest.mark.usefixtures("few")
def test_with_several_input_sizes_there_is_a_kit_for_each(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kits"
    settings = [f"run.dir={run_folder}", f"model.arch={ARCH}", "data.kind=digits", "prune.sizes=[8, 12]"]
    words = [word for setting in settings for word in ("--set", setting)]
    assert latency_table.main([*words, "--fast", "--emit-kit", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == {"8px", "12px"}
    for name in ("8px", "12px"):
        script = [sys.executable, "-I", str(folder / name / kit.SCRIPT)]
        assert latency_table.main([*words, "--import-kit", str(folder)]) == ConfigError.exit_code
        subprocess.run(script, cwd=tmp_path, check=True, capture_output=True)
    assert not (run_folder / measure.TABLE).exists()  # all tables or none
    assert latency_table.main([*words, "--import-kit", str(folder)]) == 0
    tables = [LatencyTable.read(place / measure.TABLE) for place in (run_folder, run_folder / "sizes" / "12px")]
    assert all(table.imported for table in tables)
    assert tables[0] != tables[1]


def test_a_target_that_does_not_run_here_is_offered_a_kit(run_folder: Path) -> None:
    assert command(run_folder, "--set", "target.engine=tensorrt") == BackendAbsent.exit_code
    assert command(run_folder / "none") == 1
    assert command(run_folder, "--import-kit", str(run_folder)) == ConfigError.exit_code


def test_pieces_can_be_built_at_every_planned_width(survey: Survey) -> None:
    kinds = [replace(kind, step=tuple(4 for _ in kind.units)) for kind in survey.kinds.values()]
    design, networks = survey.design(kinds), survey.networks(kinds, 3, 2)
    for piece in [*survey.ends(), *design[:3], *networks]:
        assert survey.build(piece).nodes
    assert all(units % 4 == 0 for piece in design for units in piece.units.values())
    assert [piece.held_out for piece in networks] == [False] * 3 + [True] * 2
    names = [piece.name for piece in (*survey.ladders(), *survey.ends(), *networks)]
    assert len(set(names)) == len(names)
    for piece in [*design, *networks]:
        assert parse(json.dumps(asdict(piece)), Piece, "manifest.json", remedy="") == piece


def staircase(step: int) -> tuple[SegmentKind, list[Piece], dict[str, Timing]]:
    """A kind whose time goes in steps of its width, measured with 0.3% of noise."""
    kind = SegmentKind("block", (128, 128), (1, 1), (Layer(Side(0, (1, 0)), Side(0, (0, 1))),))
    rng = np.random.default_rng(0)
    pieces, times = [], {}
    for axis in (0, 1):
        for units in ladder(128)[1:]:
            at = [64, 64]
            at[axis] = units
            ms = float(np.prod(np.ceil(np.array(at) / step) * step) / 4000 * rng.normal(1, 0.003))
            piece = Piece(f"block~{at[0]}-{at[1]}", "segment", "block", {"a": at[0], "b": at[1]})
            pieces.append(piece)
            times[piece.name] = Timing(ms, ms, ms, ms, 1)
    return kind, pieces, times


@pytest.mark.parametrize("step", [1, 4, 16])
def test_the_kernels_steps_are_found(step: int) -> None:
    kind, pieces, times = staircase(step)
    (found,) = with_steps([kind], pieces, times, {"a": 1, "b": 1})
    assert found.step == (step, step)


def test_drift_is_divided_out_by_the_reference() -> None:
    def row(index: int) -> kit.Timed:
        speed = 1.0 if index < 50 else 1.3  # the clock falls
        return kit.Timed(str(index), ((2 * speed, 9.0),) * 4, ((speed, 9.0),) * 4, kit.Ran("1", "cpu", "x86", ""))

    found = timings([row(index) for index in range(100)])
    values = [found[str(index)].ms for index in (*range(30), *range(70, 100))]
    assert max(values) == pytest.approx(min(values))


def test_thin_ends_are_taken_off_and_copies_share_the_rest() -> None:
    def timing(ms: float) -> Timing:
        return Timing(ms, ms, ms, ms, 1)

    kind = SegmentKind("block", (8,), (1,), (Layer(Side(0, (1,)), Side(0, (1,))),))
    shapes: Sequence[tuple[int, ...]] = [(1, 4, 2, 2), (1, 8, 2, 2)]
    pieces = [Piece(f"ends~{s[1]}", "ends", "x", {}, shapes=(s,)) for s in shapes]
    pieces.append(Piece("block~6", "segment", "block", {"g": 6}, copies=3, shapes=((1, 6, 2, 2), (1, 6, 2, 2))))
    times = {"ends~4": timing(0.4), "ends~8": timing(0.8), "block~6": timing(3.6)}
    table = make_table("net", PLACE, {"g": 8}, [kind], [], pieces, times, imported=False)
    assert table.rows[0].ms == pytest.approx((3.6 - 0.6) / 3)


def test_fast_is_faster() -> None:
    assert FAST.rounds * FAST.round_s < kit.NORMAL.rounds * kit.NORMAL.round_s / 10
