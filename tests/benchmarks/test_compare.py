from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import open_scripted

from benchmarks.compare import main
from benchmarks.results.base import Bounds, Verdict, dump
from benchmarks.results.comparison import Limit, compare_runs, exit_code, gate_exit_code, gate_in_run, limit
from benchmarks.results.latency import Contention, LatencyResult, Monitor, Pace, load_latency
from benchmarks.results.schema import json_schema
from benchmarks.timing.result import summarize
from benchmarks.timing.run import measure
from benchmarks.timing.worker import Settings
from compress.errors import ConfigError
from compress.parse import UnknownFields

Make = Callable[..., LatencyResult]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> LatencyResult:
    path = tmp_path_factory.mktemp("scripts") / "net.script"
    path.write_text("sleep 1")
    quick = Settings(warmup_s=0, warmup_runs=1, duration_s=0.02, iterations=4, turns=2, processes=1)
    return measure([path], quick, opener=open_scripted)[0]


@pytest.fixture(scope="module")
def made(measured: LatencyResult) -> Make:
    """A result with samples around ``ms`` instead of the measured ones, whose rounds share a disturbance."""

    def make(ms: float, *, seed: int, name: str = "net.onnx", rounds: int = 20, samples: int = 15) -> LatencyResult:
        rng = np.random.default_rng(seed)
        times = [ms * np.exp(rng.normal(0, 0.01) + rng.normal(0, 0.01, samples)) for _ in range(rounds)]
        return measured.model_copy(
            update={
                "artifact": measured.artifact.model_copy(update={"path": f"build/{name}"}),
                "samples_ns": [[round(x * 1e6) for x in one] for one in times],
                "stats": {"latency_ms": summarize(times)},
                "verdict": Verdict(status="VALID"),  # whatever this machine was doing
                "contention": Contention(waited=0.0, others=0.0),
            }
        )

    return make


def write(path: Path, *results: LatencyResult) -> str:
    path.write_text(dump(results))
    return str(path)


@pytest.mark.parametrize(
    ("slowdown", "decision", "code"), [(1.0, "PASS", 0), (1.05, "UNDECIDED", 0), (1.08, "REGRESSION", 3)]
)
def test_the_interval_decides(made: Make, slowdown: float, decision: str, code: int) -> None:
    found = compare_runs([made(2.0, seed=0)], [made(2.0 * slowdown, seed=1)], [limit("median:5%"), limit("p90:20%")])
    (one,) = found.engines
    assert [gate.decision for gate in one.gates] == [decision, "PASS"]
    assert one.ratio == one.gates[0].ratio
    assert one.ratio.lo < slowdown < one.ratio.hi
    assert found.geomean == pytest.approx(one.ratio.value)
    assert exit_code(found) == code


def test_noise_fails_no_build_and_a_slower_engine_is_called_slower(made: Make) -> None:
    """20 pairs of runs of one engine, then the same 20 with the second 5% slower, without any allowance."""

    def code(ms: float, i: int) -> int:
        before, now = made(1.0, seed=i, samples=5), made(ms, seed=100 + i, samples=5)
        return exit_code(compare_runs([before], [now], [limit("median:0%")]))

    assert sum(code(1.0, i) == 3 for i in range(20)) <= 2  # one of forty is expected
    assert all(code(1.05, i) == 3 for i in range(20))


def test_engines_are_paired_by_name(made: Make) -> None:
    before = [made(1.0, seed=0, name="a.onnx"), made(4.0, seed=1, name="b.onnx"), made(1.0, seed=2, name="old.onnx")]
    now = [made(2.0, seed=3, name="b.onnx"), made(2.0, seed=4, name="a.onnx"), made(1.0, seed=5, name="new.onnx")]
    found = compare_runs(before, now)
    assert [Path(one.candidate.path).name for one in found.engines] == ["a.onnx", "b.onnx"]
    assert [one.ratio.value for one in found.engines] == pytest.approx([2.0, 0.5], rel=0.02)
    assert found.geomean == pytest.approx(1.0, rel=0.02)
    assert found.unpaired == ["build/old.onnx", "build/new.onnx"]


def test_the_only_engines_and_chosen_ones_need_no_common_name(made: Make) -> None:
    a, b, c = (made(1.0, seed=i, name=name) for i, name in enumerate(["a.onnx", "b.onnx", "c.onnx"]))
    assert len(compare_runs([a], [b]).engines) == 1
    (chosen,) = compare_runs([a, b], [c], pairs=[("build/b.onnx", "c.onnx")]).engines
    assert (chosen.baseline.path, chosen.candidate.path) == ("build/b.onnx", "build/c.onnx")
    with pytest.raises(ConfigError, match=r"no engine is in both runs: a\.onnx, b\.onnx against c\.onnx"):
        compare_runs([a, b], [c])
    with pytest.raises(ConfigError, match=r"2 engines of the baseline are called a\.onnx"):
        compare_runs([a, a], [a])
    with pytest.raises(ConfigError, match=r"no engines of the candidate are called gone\.onnx: it has build/c\.onnx"):
        compare_runs([a], [c], pairs=[("a.onnx", "gone.onnx")])


@pytest.mark.parametrize(
    ("field", "update", "named"),
    [
        ("modes", {"threads": 2}, "threads: 1 against 2"),
        ("modes", {"spinning": "all"}, "spinning: none against all"),
        ("scenario", {"batch": 8}, "batch: 1 against 8"),
        ("host", {"cpu": "another"}, "against another"),
        ("host", {"cores": 99}, "logical processors: .* against 99"),
        ("backend", {"version": "2"}, "engine: scripted 1 against scripted 2"),
        ("backend", {"actual": "gpu"}, "provider: script against gpu"),
        ("config", {"affinity": (0, 1)}, "affinity: none against 0,1"),
    ],
)
def test_other_conditions_are_refused_by_name(made: Make, field: str, update: dict[str, Any], named: str) -> None:
    before = made(1.0, seed=0)
    value = getattr(before, field)
    changed = {**value, **update} if isinstance(value, dict) else value.model_copy(update=update)
    now = before.model_copy(update={field: changed})
    with pytest.raises(ConfigError, match=named) as caught:
        compare_runs([before], [now])
    assert "--allow-different" in caught.value.remedy
    assert len(compare_runs([before], [now], allow_different=True).engines[0].different) == 1
    assert compare_runs([now], [now]).engines[0].different == {}


@given(st.sampled_from(["median", "p90", "p95", "p99.9"]), st.decimals(0, 1000, places=2))
def test_limits_say_what_they_were_given(metric: Any, percent: Any) -> None:
    found = limit(f"{metric}:{percent}%")
    assert found == Limit(metric, pytest.approx(float(percent) / 100))
    assert limit(str(found)).share == pytest.approx(found.share, rel=1e-5)


@pytest.mark.parametrize("text", ["median", "median:5", "mean:5%", "median:-5%", "median:nan%", "p90:5%%", ""])
def test_other_limits_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a limit such as median:5%"):
        limit(text)


def test_a_tail_of_too_few_samples_is_not_judged(made: Make) -> None:
    few, many = made(1.0, seed=0, samples=3), made(1.0, seed=1)
    for before, now in [(few, many), (many, few)]:
        with pytest.raises(ConfigError, match="60 samples are too few for p90:5%: 64 are needed"):
            compare_runs([before], [now], [limit("p90:5%")])


def test_the_command(made: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a.json", made(1.0, seed=0), made(1.0, seed=1, name="gone.onnx"))
    b = write(tmp_path / "b.json", made(1.2, seed=2))
    out, page = tmp_path / "c.json", tmp_path / "c.md"
    limits = ["--fail-on", "median:5%", "--fail-on", "p90:19%"]
    assert main([a, b, *limits, "--json", str(out), "--markdown", str(page)]) == 3
    printed = capsys.readouterr().out
    for text in (printed, page.read_text()):
        assert "| net.onnx |" in text
        assert "REGRESSION: net.onnx: median ratio 1." in text
        assert "UNDECIDED: net.onnx: p90 ratio 1." in text
        assert "in one run only, not compared: build/gone.onnx" in text
    (comparison,) = json.loads(out.read_text())
    jsonschema.validate(comparison, json_schema())
    assert main([a, b]) == 0
    assert main([b, a, *limits]) == 0
    capsys.readouterr()
    assert main([a, b, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["kind"] == "comparison"


def test_invalid_measurements_prove_nothing(made: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path / "good.json", made(1.0, seed=0))
    verdict = Verdict(status="INVALID", reasons=["the outputs hold NaN"])
    bad = write(tmp_path / "bad.json", made(2.0, seed=1).model_copy(update={"verdict": verdict}))
    for files, which in [((good, bad), "candidate"), ((bad, good), "baseline")]:
        assert main([*files, "--fail-on", "median:5%"]) == 4
        printed = capsys.readouterr().out
        assert f"INVALID: net.onnx: {which}: the outputs hold NaN" in printed
        assert "REGRESSION" not in printed


def test_a_busy_machine_is_told(made: Make) -> None:
    quiet = made(1.0, seed=0)
    quiet = quiet.model_copy(update={"monitor": _busy(quiet, 1.0)})
    busy = quiet.model_copy(update={"monitor": _busy(quiet, 90.0)})
    assert not [text for text in compare_runs([quiet], [quiet]).warnings if "busy" in text]
    assert "baseline: the machine was 90% busy before the measurement began" in compare_runs([busy], [quiet]).warnings
    assert "candidate: the machine was 90% busy before the measurement began" in compare_runs([quiet], [busy]).warnings


def test_a_single_worker_process_is_told(made: Make) -> None:
    one = made(1.0, seed=0)
    several = one.model_copy(update={"scenario": one.scenario.model_copy(update={"processes": 10})})
    assert any(text.startswith("baseline: only one worker process") for text in compare_runs([one], [several]).warnings)
    assert not any("worker process" in text for text in compare_runs([several], [several]).warnings)
    few = one.model_copy(update={"scenario": one.scenario.model_copy(update={"processes": 4})})
    assert (
        "candidate: 4 worker processes are too few for 95% intervals; measure with 6"
        in compare_runs([one], [few]).warnings
    )


def test_whole_processes_are_compared(made: Make) -> None:
    """Twenty rounds a run, those of ten processes: the interval is wider where the processes differ more."""
    rng = np.random.default_rng(0)

    def run(spread: float, seed: int) -> LatencyResult:
        one = made(1.0, seed=seed)
        lives = np.exp(rng.normal(0, spread, 10)).repeat(2)
        samples = [[round(x * life) for x in each] for each, life in zip(one.samples_ns, lives, strict=True)]
        scenario = one.scenario.model_copy(update={"processes": 10})
        return one.model_copy(update={"samples_ns": samples, "scenario": scenario})

    alike, unlike = (compare_runs([run(s, 0)], [run(s, 1)]).engines[0].ratio for s in (0.0, 0.05))
    assert unlike.hi - unlike.lo > 2 * (alike.hi - alike.lo)


def on_a_machine(one: LatencyResult, paces: Sequence[float]) -> LatencyResult:
    """A result of ten processes in which the reference network took ``paces``, and the engine as much longer."""
    rounds = [pace for pace in paces for _ in range(2)]
    samples = [[round(x * pace) for x in each] for each, pace in zip(one.samples_ns, rounds, strict=True)]
    stats = {"latency_ms": summarize([np.array(each) / 1e6 for each in samples], 10)}
    pace = Pace(sha256="a1", version="1.31", rounds_ms=rounds)
    scenario = one.scenario.model_copy(update={"processes": 10})
    return one.model_copy(update={"samples_ns": samples, "pace": pace, "stats": stats, "scenario": scenario})


STEADY = [0.99, 1.0, 1.0, 1.0, 1.01] * 2
WARNED = "times as long as in the baseline: the machine was not equally fast"


@pytest.mark.parametrize(
    ("machine", "slowdown", "decision"),
    [
        (1.0, 1.0, "PASS"),
        (1.0, 1.2, "REGRESSION"),
        (1.2, 1.0, "UNDECIDED"),  # would be a regression, and the machine explains it
        (1.2, 1 / 1.2, "PASS"),  # as measured, and on a machine as fast as before
        (1 / 1.2, 1.2, "UNDECIDED"),  # would pass, and the machine hides a regression
        (1.2, 1.2, "REGRESSION"),  # the machine explains a part of it only
    ],
)
def test_a_machine_of_another_pace_decides_no_gate(
    made: Make, machine: float, slowdown: float, decision: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = on_a_machine(made(2.0, seed=0), STEADY)
    now = on_a_machine(made(2.0 * slowdown, seed=1), [machine * pace for pace in STEADY])
    found = compare_runs([before], [now], [limit("median:7%"), limit("p90:9%")])
    (one,) = found.engines
    assert one.pace is not None
    assert one.pace.value == pytest.approx(machine)
    assert one.ratio.value == pytest.approx(machine * slowdown, rel=0.02)  # as measured
    assert [gate.decision for gate in one.gates] == [decision] * 2
    assert exit_code(found) == (3 if decision == "REGRESSION" else 0)
    assert any(WARNED in text for text in found.warnings) == (machine != 1.0)
    main([write(tmp_path / "a.json", before), write(tmp_path / "b.json", now), "--fail-on", "median:7%"])
    printed = capsys.readouterr().out
    assert (WARNED in printed) == (machine != 1.0)
    assert ("measure both in one run to decide" in printed) == (decision == "UNDECIDED")


def test_engines_of_one_run_are_warned_of_once(made: Make) -> None:
    before, now = (
        [on_a_machine(made(2.0, seed=seed, name=name), [by * pace for pace in STEADY]) for name in ("a", "b")]
        for seed, by in ((0, 1.0), (1, 1.2))
    )
    assert sum(WARNED in text for text in compare_runs(before, now).warnings) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda one: {"pace": None},
        lambda one: {"pace": one.pace.model_copy(update={"sha256": "b2"})},
        lambda one: {"pace": one.pace.model_copy(update={"version": "1.30"})},
        lambda one: {"host": one.host.model_copy(update={"cpu": "another"})},
    ],
)
def test_another_reference_network_or_machine_tells_nothing(
    made: Make, change: Callable[[Any], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, now = on_a_machine(made(1.0, seed=0), STEADY), on_a_machine(made(1.0, seed=1), [1.2] * 10)
    now = now.model_copy(update=change(now))
    found = compare_runs([before], [now], [limit("median:5%")], allow_different=True)
    assert found.engines[0].pace is None
    assert found.engines[0].gates[0].decision == "REGRESSION"
    main([write(tmp_path / "a.json", before), write(tmp_path / "b.json", now), "--allow-different"])
    assert "no reference network ran in both" in capsys.readouterr().out


@pytest.fixture(scope="module")
def in_one_run(tmp_path_factory: pytest.TempPathFactory) -> list[LatencyResult]:
    """Engines that sleep for 2, 2 and 4 ms, in turns."""
    folder = tmp_path_factory.mktemp("run")
    paths = [folder / f"{name}.script" for name in ("old", "same", "slow")]
    for path, ms in zip(paths, (2, 2, 4), strict=True):
        path.write_text(f"sleep {ms}")
    quick = Settings(warmup_s=0, warmup_runs=1, duration_s=0.02, iterations=66, turns=2, processes=6)
    return measure(paths, quick, opener=open_scripted)


def test_engines_of_one_run_are_held_against_the_first(in_one_run: list[LatencyResult]) -> None:
    old, same, slow = gate_in_run(in_one_run, [limit("median:40%"), limit("p90:40%")])
    assert old.comparison is None
    assert same.comparison is not None
    assert slow.comparison is not None
    assert [gate.decision for gate in slow.comparison.gates] == ["REGRESSION"] * 2
    assert slow.comparison.gates[0].ratio == slow.comparison.ratio  # the paired one
    assert not any(gate.decision == "REGRESSION" for gate in same.comparison.gates)
    assert (gate_exit_code(slow.comparison.gates), gate_exit_code(same.comparison.gates)) == (3, 0)
    for one in (old, same, slow):
        jsonschema.validate(json.loads(one.model_dump_json()), json_schema())


@pytest.mark.parametrize(
    ("bounds", "decision"),
    [((0.9, 0.8, 1.05), "PASS"), ((1.04, 1.0, 1.06), "UNDECIDED"), ((1.2, 1.0500001, 1.3), "REGRESSION")],
)
def test_the_interval_of_the_paired_ratio_decides(
    in_one_run: list[LatencyResult], bounds: tuple[float, float, float], decision: str
) -> None:
    old, same, _ = in_one_run
    assert same.comparison is not None
    value, lo, hi = bounds
    ratio = same.comparison.model_copy(update={"ratio": Bounds(value=value, lo=lo, hi=hi)})
    _, found = gate_in_run([old, same.model_copy(update={"comparison": ratio})], [limit("median:5%")])
    assert found.comparison is not None
    assert [gate.decision for gate in found.comparison.gates] == [decision]


def test_a_tail_of_too_few_samples_is_not_judged_in_a_run(in_one_run: list[LatencyResult]) -> None:
    with pytest.raises(ConfigError, match=r"samples are too few for p99:5%: 662 are needed"):
        gate_in_run(in_one_run, [limit("p99:5%")])


def test_a_file_whose_rounds_are_not_those_of_its_processes_is_refused(made: Make, tmp_path: Path) -> None:
    one = made(1.0, seed=0)
    path = tmp_path / "a.json"
    write(path, one.model_copy(update={"scenario": one.scenario.model_copy(update={"processes": 3})}))
    with pytest.raises(ConfigError, match="20 rounds are not those of 3 processes"):
        load_latency(path)
    write(path, on_a_machine(one, STEADY).model_copy(update={"samples_ns": one.samples_ns[:10]}))
    with pytest.raises(ConfigError, match="10 rounds, and 20 of the pace"):
        load_latency(path)


def _busy(result: LatencyResult, percent: float) -> Monitor:
    before = result.monitor.before.model_copy(update={"busy_percent": percent})
    return result.monitor.model_copy(update={"before": before})


def test_results_survive_the_file(made: Make, tmp_path: Path) -> None:
    results = [made(1.0, seed=0), made(2.0, seed=1, name="other.onnx")]
    assert load_latency(Path(write(tmp_path / "a.json", *results))) == results


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: "nonsense", "is damaged, or of another version"),
        (lambda one: {"a": 1}, r"'0\.schema_version' is missing"),
        (lambda one: one | {"schema_version": 0}, "has schema version 0, this version reads 3"),
        (lambda one: {k: v for k, v in one.items() if k != "schema_version"}, r"'0\.schema_version' is missing"),
        (lambda one: one | {"kind": "accuracy"}, "of kind 'accuracy', not 'latency'"),
        (lambda one: one | {"samples_ns": [[1, 2]]}, "field '0.samples_ns': List should have"),
        (lambda one: one | {"samples_ns": [[1, 0], [1]]}, r"'0\.samples_ns\.0\.1': Input should be greater than 0"),
    ],
)
def test_other_files_are_refused(made: Make, tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([change(made(1.0, seed=0).model_dump(mode="json"))]))
    with pytest.raises(ConfigError, match=message):
        load_latency(path)


def test_a_field_of_a_later_version_is_reported_and_left_out(made: Make, tmp_path: Path) -> None:
    path, one = tmp_path / "a.json", made(1.0, seed=0)
    path.write_text(json.dumps([one.model_dump(mode="json") | {"later": 1}]))
    with pytest.warns(UnknownFields, match=r"ignores: \[\]\.later"):
        assert load_latency(path) == [one]


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"{", "is not JSON"), (b"\xff\xfe", "is not JSON"), (b"[]", "holds no"), (b"7", "is damaged")],
)
def test_files_that_hold_nothing_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes, message: str
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text)
    assert main([str(path), str(path)]) == 2
    assert message in capsys.readouterr().err
    assert main([str(tmp_path / "gone.json"), str(path)]) == 1
