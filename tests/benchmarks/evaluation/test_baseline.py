from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.evaluation.baseline import Baseline, Quantity, Source, judge
from benchmarks.results.base import Bounds
from compress.errors import PipelineError

NUMBERS = st.floats(-10, 10)
TOLERANCES = st.floats(0, 5)
GOOD = {
    "schema_version": 1,
    "source": {"config": "configs/default.toml", "overrides": ["run.seed=1"]},
    "made": {"date": "2026-01-01"},
    "quantities": {"top-1": {"value": 0.9, "bound": "least", "tolerance": 0.01, "why": "few images"}},
}


def exactly(value: float) -> Bounds:
    return Bounds(value=value, lo=value, hi=value)


def quantity(bound: str, value: float = 0.5, tolerance: float = 0.1) -> Quantity:
    return Quantity.model_validate({"value": value, "bound": bound, "tolerance": tolerance, "why": "a test"})


@pytest.mark.parametrize(
    ("bound", "allowed"),
    [("least", (False, True, True, True)), ("most", (True, True, True, False)), ("both", (False, True, True, False))],
)
def test_each_bound_refuses_its_side(bound: str, allowed: tuple[bool, ...]) -> None:
    found = [quantity(bound).allows(exactly(value)) for value in (0.39, 0.4, 0.6, 0.61)]
    assert found == list(allowed)


@given(value=NUMBERS, tolerance=TOLERANCES, found=NUMBERS, low=TOLERANCES, high=TOLERANCES, more=TOLERANCES)
def test_doubt_never_helps_and_tolerance_never_hurts(
    value: float, tolerance: float, found: float, low: float, high: float, more: float
) -> None:
    narrow, wide = exactly(found), Bounds(value=found, lo=found - low, hi=found + high)
    least, most, both = (quantity(bound, value, tolerance) for bound in ("least", "most", "both"))
    assert both.allows(wide) == (least.allows(wide) and most.allows(wide))
    for one in (least, most, both):
        assert one.allows(exactly(value))
        assert one.allows(narrow) or not one.allows(wide)
        assert one.model_copy(update={"tolerance": tolerance + more}).allows(wide) or not one.allows(wide)


def test_what_is_not_found_fails_and_what_is_not_asked_for_does_not() -> None:
    [missing] = judge({"top-1": quantity("least")}, {"other": exactly(0.0)})
    assert not missing.passed
    assert "not found" in str(missing)


def test_a_baseline_comes_back(tmp_path: Path) -> None:
    before = Baseline.model_validate(GOOD)
    before.write(tmp_path / "baseline.json")
    assert Baseline.read(tmp_path / "baseline.json") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema version 2, this version reads 1"),
        ({"quantities": {"top-1": {"value": 0.9, "bound": "least", "tolerance": 0.01}}}, r"quantities\.top-1\.why"),
        ({"quantities": {"top-1": {**GOOD["quantities"]["top-1"], "tolerance": -1}}}, "tolerance"),  # type: ignore[index]
    ],
)
def test_a_damaged_baseline_says_where(change: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(PipelineError, match=message):
        Baseline.read(path)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_no_baseline_at_all(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(PipelineError, match=r"there is no baseline|is not JSON|is damaged"):
        Baseline.read(path)


def test_what_is_given_now_lies_over_what_the_file_says() -> None:
    source = Source(config="configs/default.toml", overrides=("run.seed=1",)).changed(None, ["run.seed=2"])
    assert source.load().run.seed == 2
    assert Source(config="a.toml").changed(Path("b.toml"), []).config == "b.toml"
