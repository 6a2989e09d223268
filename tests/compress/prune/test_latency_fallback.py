"""A latency budget for an engine that is not on this machine: of the MACs until there is a latency table."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_prune_stage import SIZE, with_baseline

from compress.cli import app
from compress.commands import run as run_app
from compress.config import Config, TargetConfig, load_config
from compress.errors import BackendAbsent, ConfigError
from compress.graph.plan import WidthPlan
from compress.graph.structure import Structure
from compress.models.model import load_model
from compress.progress import Silent
from compress.prune.latency.machine import absence
from compress.prune.latency.table import (
    LatencyTable,
    Machine,
    Member,
    Row,
    SegmentKind,
    WholeRow,
    fingerprint,
    layers_of,
)
from compress.prune.stage import TABLE, prune
from compress.run import Run, read_manifest

SETTINGS = ("model.arch=cifar_resnet20", "prune.images=40", "target.engine=tensorrt")

pytestmark = pytest.mark.skipif(absence(TargetConfig(engine="tensorrt")) is None, reason="TensorRT runs here")


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def config(*overrides: str) -> Config:
    return load_config(None, [*SETTINGS, *overrides])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that all tests prune anew, as the losses need not be measured again."""
    return Path(with_baseline(tmp_path_factory.mktemp("run")).directory)


def pruned(folder: Path, *overrides: str) -> tuple[WidthPlan, list[str]]:
    run = Run(folder, progress=(notes := Notes()))
    return WidthPlan.read(prune(config(*overrides), run) / "plan.json"), notes.lines


def recorded(folder: Path) -> dict[str, str | None]:
    return dict(read_manifest(folder / "prune").settings["prune"])


def test_a_share_of_the_latency_is_taken_of_the_macs_and_said_and_recorded(folder: Path) -> None:
    plan, lines = pruned(folder, "prune.latency=50%")
    assert 0.4 < plan.after.macs / plan.before.macs <= 0.5
    assert plan.latency is None
    assert all(group.after % 8 == 0 for group in plan.groups)  # as without a table
    first, *_ = lines
    assert first.startswith("warning: pruning to prune.macs=50% instead of prune.latency=50%")
    for part in (str(folder / TABLE), "TensorRT cannot run on this machine", "--emit-kit DIR", "--import-kit"):
        assert part in first
    assert (recorded(folder)["latency"], recorded(folder)["macs"]) == (None, "50%")


@pytest.mark.parametrize(
    ("budgets", "macs"),
    [
        (("prune.latency=50%", "prune.macs=60%"), "50%"),
        (("prune.latency=70%", "prune.macs=60%"), "60%"),
        (("prune.latency=90%", "prune.macs=20M"), "20M"),
        (("prune.latency=50%", "prune.params=90%"), "50%"),
    ],
)
def test_of_several_budgets_the_least_share_of_the_macs_is_taken(
    folder: Path, budgets: Sequence[str], macs: str
) -> None:
    plan, _ = pruned(folder, *budgets)
    share = float(macs[:-1]) / 100 if macs.endswith("%") else float(macs[:-1]) * 1e6 / plan.before.macs
    assert share - 0.1 < plan.after.macs / plan.before.macs <= share
    assert (recorded(folder)["latency"], recorded(folder)["macs"]) == (None, macs)


def test_rounds_lead_to_the_share_of_the_macs(folder: Path) -> None:
    plan, lines = pruned(folder, "prune.latency=50%", "prune.rounds=2", "prune.round_epochs=0")
    assert plan.after.macs <= 0.5 * plan.before.macs
    assert sum("instead of prune.latency" in line for line in lines) == 1


def test_milliseconds_cannot_be_taken_of_the_macs(folder: Path) -> None:
    with pytest.raises(BackendAbsent, match=r"a budget of 4\.0 ms needs a latency table.*\n.*--emit-kit"):
        pruned(folder, "prune.latency=4.0 ms")


def test_a_table_that_is_named_must_be_there(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no latency table at .*nowhere\.json"):
        pruned(folder, "prune.latency=50%", f"prune.table={folder / 'nowhere.json'}")


def test_an_imported_table_makes_the_stage_due_again(folder: Path) -> None:
    by_macs, _ = pruned(folder, "prune.latency=50%")
    table = imported_table(folder / "baseline")
    try:
        table.write(folder / TABLE)
        by_latency, lines = pruned(folder, "prune.latency=50%")
    finally:
        (folder / TABLE).unlink()
    assert by_latency != by_macs
    assert by_latency.latency is not None
    assert by_latency.latency[1] <= 0.5 * by_latency.latency[0]
    assert not any("warning" in line for line in lines)
    assert recorded(folder)["latency"] == "50%"


def test_a_table_of_another_target_in_its_place_counts_as_none(folder: Path) -> None:
    table = imported_table(folder / "baseline")
    try:
        replace(table, place=replace(table.place, target="ort-x86", engine="onnxruntime")).write(folder / TABLE)
        plan, [first, *_] = pruned(folder, "prune.latency=50%")
    finally:
        (folder / TABLE).unlink()
    assert plan.latency is None
    assert "no latency table for target tensorrt on engine tensorrt" in first


def test_the_command_says_so_and_ends_well(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for one in (*SETTINGS, f"run.dir={folder}") for word in ("--set", one)]
    assert run_app(app, ["prune", *words, "--set", "prune.latency=50%"]) == 0
    assert "instead of prune.latency=50%" in capsys.readouterr().err
    assert run_app(app, ["prune", *words, "--set", "prune.latency=1 ms"]) == BackendAbsent.exit_code


def imported_table(baseline: Path) -> LatencyTable:
    """A device on which a segment takes 10 us and 1 ns a product of its layers' widths."""
    net = load_model(baseline).net
    structure = Structure.of(net, SIZE.shape)
    kinds = [
        SegmentKind(
            segment.name,
            tuple(structure.coupling[group].units for group in segment.groups),
            (4,) * len(segment.groups),
            layers_of(net, structure.coupling, segment),
        )
        for segment in structure.segments
    ]

    def ms(kind: SegmentKind, share: float) -> float:
        units = [np.array(share * full) for full in kind.units]
        return float(0.01 + 1e-6 * sum(layer.inputs(units) * layer.outputs(units) for layer in kind.layers))

    shares = (0.25, 0.5, 0.75, 1.0)
    units = {share: {g.name: int(share * g.units) for g in structure.coupling} for share in shares}
    wholes = {share: sum(ms(kind, share) for kind in kinds) for share in shares}
    return LatencyTable(
        fingerprint(net, SIZE.shape),
        Machine("tensorrt", "tensorrt", "10.7", "a GPU", "x86_64", 1, 1),
        True,
        {group.name: group.units for group in structure.coupling},
        tuple(kinds),
        tuple(Member(s.name, s.name, s.groups, s.removable) for s in structure.segments),
        tuple(
            Row(kind.name, tuple(int(share * full) for full in kind.units), *[ms(kind, share)] * 3, 5)
            for kind in kinds
            for share in shares
        ),
        tuple(WholeRow(units[share], (), False, *[wholes[share]] * 4, 5) for share in shares),
        {},
    )
