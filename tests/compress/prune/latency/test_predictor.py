"""The latency table as a file, whether it is about this network, and what the model makes of its rows."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from compress.config import TargetConfig
from compress.errors import ConfigError
from compress.graph.groups import couple
from compress.graph.segments import segments
from compress.models.registry import build
from compress.prune.latency.predictor import LatencyModel, LatencyTable
from compress.prune.latency.table import Machine, Member, Row, SegmentKind, WholeRow, fingerprint, layers_of

PLACE = Machine("ort-x86", "onnxruntime", "1.31.1", "a processor", "x86_64", 1, 1)
SHAPE = (3, 16, 16)


def true_ms(kind: SegmentKind, units: np.ndarray) -> np.ndarray:
    """A staircase machine: outputs go in steps of 8, inputs in steps of 4; nothing that the model is told."""

    def up(width: np.ndarray, step: int) -> np.ndarray:
        return np.ceil(width / step) * step

    work = sum(up(layer.inputs(units), 4) * up(layer.outputs(units), 8) for layer in kind.layers)
    return np.asarray(0.01 + 1e-4 * work + 2e-4 * sum(layer.outputs(units) for layer in kind.layers))


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    net = build("cifar_resnet20_b")
    coupling = couple(net, SHAPE)
    found = segments(net, coupling, SHAPE)
    kinds = []
    for segment in found:
        units = tuple(coupling[group].units for group in segment.groups)
        kinds.append(SegmentKind(segment.name, units, (4,) * len(units), layers_of(net, coupling, segment)))
    members = tuple(Member(s.name, s.name, s.groups, s.removable) for s in found)
    rng = np.random.default_rng(0)
    rows = []
    for kind in kinds:
        full = np.array(kind.units)
        for x in np.vstack([full, np.full_like(full, 4), 4 * rng.integers(1, full // 4 + 1, (30, len(full)))]):
            ms = float(true_ms(kind, x)) * rng.normal(1, 0.003)
            rows.append(Row(kind.name, tuple(x.tolist()), ms, ms, ms, 5))
    networks = []
    for index in range(16):
        units = {g.name: int(4 * rng.integers(1, g.units // 4 + 1)) for g in coupling}
        removed = tuple(m.name for m in members if m.removable and rng.random() < 0.2)
        parts = [
            float(true_ms(kind, np.array([units[g] for g in m.groups])))
            for kind, m in zip(kinds, members, strict=True)
            if m.name not in removed
        ]
        ms = 0.05 + 1.1 * sum(parts)
        networks.append(WholeRow(units, removed, index >= 6, ms, ms, ms, 1.05 * ms, 5))
    groups = {group.name: group.units for group in coupling}
    return LatencyTable(
        fingerprint(net, SHAPE), PLACE, False, groups, tuple(kinds), members, tuple(rows), tuple(networks), {}
    )


@pytest.fixture(scope="module")
def model(table: LatencyTable) -> LatencyModel:
    return LatencyModel(table)


def test_whole_networks_are_predicted_from_their_segments(model: LatencyModel) -> None:
    assert len(model.errors) == 10
    assert model.mean_error < 0.01
    assert model.max_error < 0.03
    assert model.scale == pytest.approx(1.1 * 1.05, rel=0.05)  # predictions are medians


def test_arrays_of_units_broadcast(table: LatencyTable, model: LatencyModel) -> None:
    member = next(m for m in table.segments if m.name == "layer2.0")
    first, second, third = member.groups
    units = {first: np.array([4, 8, 16])[:, None], second: np.array([8, 32])[None]}
    found = model.segment_ms("layer2.0", units)
    assert found.shape == (3, 2)
    one = model.segment_ms("layer2.0", {first: 8, second: 32, third: table.groups[third]})
    assert found[1, 1] == pytest.approx(float(one))
    assert (np.diff(found, axis=0) > 0).all()


def test_a_width_between_steps_costs_what_the_next_step_costs(model: LatencyModel) -> None:
    costs = model.segment_ms("layer3.1", {"layer3.1.conv1": np.arange(33, 37)})
    assert np.ptp(costs) == 0


def test_candidates_leave_out_what_a_wider_one_beats(model: LatencyModel) -> None:
    inner = model.candidates("layer3.1.conv1")
    assert inner[-1] == 64
    assert all(units % 4 == 0 for units in inner)
    assert all(a < b for a, b in itertools.pairwise(inner))


def test_a_narrower_width_that_is_slower_is_predicted_so_and_no_candidate(table: LatencyTable) -> None:
    """As ONNX Runtime has it in a ResNet-56: below 16 channels a slower kernel takes over."""

    def slower(row: Row) -> Row:
        odd = row.kind.startswith("layer1") and any(units % 8 for units in row.units)
        return replace(row, ms=3 * row.ms) if odd else row

    model = LatencyModel(replace(table, rows=tuple(map(slower, table.rows)), networks=()))
    member = next(m for m in table.segments if m.name == "layer1.1")
    narrow, wide = model.segment_ms("layer1.1", {member.groups[0]: np.array([12, 16])})
    assert narrow > 1.5 * wide
    assert not {4, 12} & set(model.candidates(member.groups[0]))


def test_a_removed_segment_costs_nothing(model: LatencyModel) -> None:
    full = model.network_ms({})
    without = model.network_ms({}, ["layer2.1"])
    assert full - without == pytest.approx(model.scale * float(model.segment_ms("layer2.1", {})))


def test_a_table_reads_back_as_it_was_written(table: LatencyTable, tmp_path: Path) -> None:
    table.write(tmp_path / "table.json")
    assert LatencyTable.read(tmp_path / "table.json") == table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("rows"), "'rows' is missing"),
        (lambda v: v["rows"][0].update(ms=-1.0), r"rows\.0\.ms': Input should be greater than"),
        (lambda v: v["rows"][0].update(units=[1, 2, 3, 4]), "has 4 widths"),
        (lambda v: v["segments"][0].update(groups=["nonsense"]), "do not fit"),
        (lambda v: v.update(schema_version=99), "schema version 99"),
    ],
)
def test_a_damaged_table_is_refused(table: LatencyTable, tmp_path: Path, change: object, message: str) -> None:
    value = json.loads(json.dumps({"schema_version": 1, **asdict(table)}))
    change(value)  # type: ignore[operator]
    path = tmp_path / "table.json"
    path.write_text(json.dumps(value))
    with pytest.raises(ConfigError, match=message):
        LatencyTable.read(path)


def test_no_table_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"benchmarks\.latency_table"):
        LatencyTable.read(tmp_path / "none.json")


@pytest.mark.parametrize("change", [{"version": "2"}, {"device": "other"}, {"machine": "arm"}])
def test_a_foreign_table_is_refused_unless_it_is_allowed(table: LatencyTable, change: dict[str, str]) -> None:
    here = replace(PLACE, **change)
    with pytest.raises(ConfigError, match="allow_foreign_table"):
        table.check(table.network, TargetConfig(), here)
    table.check(table.network, TargetConfig(), here, foreign=True)
    table.check(table.network, TargetConfig(), None)
    replace(table, imported=True).check(table.network, TargetConfig(), here)


def test_a_processor_that_adds_in_another_way_is_another_one_whatever_its_name(table: LatencyTable) -> None:
    exact, clipping = (replace(PLACE, pair_sums=sums) for sums in ("int32", "int16"))
    with pytest.raises(ConfigError, match="INT8 sums in int32, not int16"):
        replace(table, place=exact).check(table.network, TargetConfig(), clipping)
    replace(table, place=exact).check(table.network, TargetConfig(), exact)
    table.check(table.network, TargetConfig(), clipping)  # an older table does not say


@pytest.mark.parametrize("imported", [False, True])
def test_the_number_of_threads_is_the_users_to_say(table: LatencyTable, imported: bool) -> None:
    table = replace(table, imported=imported)
    with pytest.raises(ConfigError, match="allow_foreign_table"):
        table.check(table.network, TargetConfig(threads=2), None)
    table.check(table.network, TargetConfig(threads=2), None, foreign=True)


@pytest.mark.parametrize(
    "target", [TargetConfig(name="openvino"), TargetConfig(engine="tensorrt"), TargetConfig(batch=8)]
)
def test_a_table_of_another_target_is_refused_always(table: LatencyTable, target: TargetConfig) -> None:
    with pytest.raises(ConfigError, match="was measured for"):
        table.check(table.network, target, None, foreign=True)


def test_the_fingerprint_is_of_the_structure_not_of_the_weights(table: LatencyTable) -> None:
    assert fingerprint(build("cifar_resnet20_b"), SHAPE) == table.network
    assert fingerprint(build("cifar_resnet20_b"), (3, 32, 32)) != table.network
    assert fingerprint(build("cifar_resnet20"), SHAPE) != table.network
    with pytest.raises(ConfigError, match="another network"):
        table.check(fingerprint(nn.Conv2d(3, 4, 1), SHAPE), TargetConfig(), PLACE, foreign=True)
