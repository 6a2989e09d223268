from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from scripted import open_scripted

import benchmarks
from benchmarks.results.base import dump
from benchmarks.results.comparison import compare_runs
from benchmarks.results.latency import LatencyResult, load_latency
from benchmarks.results.schema import json_schema
from benchmarks.timing.machine import fastest_processors
from benchmarks.timing.reference import ReferenceNetwork
from benchmarks.timing.run import measure
from benchmarks.timing.worker import Settings
from compress.errors import BackendAbsent, ConfigError, EngineError, PipelineError

QUICK = Settings(warmup_s=0.02, warmup_runs=2, duration_s=0.2, iterations=64, turns=5, processes=1, timeout_s=30)


def engine(folder: Path, name: str, script: str) -> Path:
    path = folder / f"{name}.script"
    path.write_text(script)
    return path


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[LatencyResult]:
    folder = tmp_path_factory.mktemp("scripts")
    paths = [engine(folder, "fast", "sleep 2"), engine(folder, "slow", "sleep 4")]
    return measure(paths, QUICK, opener=open_scripted, argv=["latency", "--engine"])


def test_results_validate_against_the_shipped_schema(results: list[LatencyResult]) -> None:
    schema = json.loads((Path(benchmarks.__file__).parent / "results" / "result.schema.json").read_text())
    assert schema == json_schema(), "run `python -m benchmarks.results.schema > benchmarks/results/result.schema.json`"
    for result in results:
        jsonschema.validate(json.loads(result.model_dump_json()), schema)


def test_result_tells_what_was_measured_and_how(results: list[LatencyResult]) -> None:
    fast, slow = results
    assert fast.stats["latency_ms"].median.value >= 2.0
    assert slow.stats["latency_ms"].median.value >= 4.0
    assert fast.stats["latency_ms"].n == sum(len(samples) for samples in fast.samples_ns) >= 64
    assert fast.stats["latency_ms"].percentiles["p90"] is not None
    assert fast.backend.name == "scripted"
    assert fast.modes == {"threads": 1, "scripted": True}
    assert fast.peak_memory_bytes > 1 << 20
    assert fast.argv == ["latency", "--engine"]


def test_engines_are_compared_round_by_round(results: list[LatencyResult]) -> None:
    fast, slow = results
    assert fast.comparison is None
    assert slow.comparison is not None
    assert slow.comparison.baseline == fast.artifact.path
    assert slow.comparison.ratio.value > 1
    assert len(fast.samples_ns) == len(slow.samples_ns)


def test_workers_do_not_import_the_program_that_measures(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        f"""
from pathlib import Path
from benchmarks.timing.run import measure
from benchmarks.timing.worker import Settings
from scripted import open_scripted
print("imported", flush=True)
if __name__ == "__main__":
    quick = Settings(warmup_s=0, warmup_runs=1, duration_s=0.02, iterations=4, turns=1, processes=2)
    measure([Path({str(engine(tmp_path, "fast", "sleep 1"))!r})], quick, opener=open_scripted)
"""
    )
    paths = [str(Path(benchmarks.__file__).parent.parent), str(Path(__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-m", "program"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("imported") == 1


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("crash", r"broken\.script crashed its worker process \(exit code 7\)"),
        ("fail", r"broken\.script: out of tensor cores"),
    ],
)
def test_broken_engine_is_an_error_that_names_it(tmp_path: Path, script: str, message: str) -> None:
    paths = [engine(tmp_path, "good", "sleep 1"), engine(tmp_path, "broken", script)]
    with pytest.raises(EngineError, match=message):
        measure(paths, QUICK, opener=open_scripted)


def test_the_others_go_on_without_an_engine_that_fails(tmp_path: Path) -> None:
    """One fails when it is opened, two in the middle of the rounds."""
    scripts = ["absent", "sleep 1", "crash 200", "sleep 2", "hang 200"]
    paths = [engine(tmp_path, script.replace(" ", "_"), script) for script in scripts]
    failures: dict[str, PipelineError] = {}
    results = measure(
        paths,
        replace(QUICK, iterations=300, limit_s=5.0, timeout_s=8),  # more than 200 runs, and fewer in the warm-up
        opener=open_scripted,
        on_failure=lambda path, error: failures.update({path.stem: error}),
    )
    assert [Path(result.artifact.path).stem for result in results] == ["sleep_1", "sleep_2"]
    assert set(failures) == {"absent", "crash_200", "hang_200"}
    assert isinstance(failures["absent"], BackendAbsent)
    assert "crashed its worker" in str(failures["crash_200"])
    assert "no answer to 'sample' within 9 s" in str(failures["hang_200"])
    first, second = results
    assert len(first.samples_ns) == len(second.samples_ns)
    assert second.comparison is not None
    assert second.comparison.baseline == first.artifact.path
    assert first.scenario.interleaved_with == [second.artifact.path]
    assert {Path(path).stem: why for path, why in first.scenario.failed.items()} == {
        name: error.message for name, error in failures.items()
    }


def test_no_engine_left_is_no_result(tmp_path: Path) -> None:
    failures: list[PipelineError] = []
    paths = [engine(tmp_path, "absent", "absent"), engine(tmp_path, "fail_200", "fail 200")]
    settings = replace(QUICK, iterations=300)
    assert measure(paths, settings, opener=open_scripted, on_failure=lambda _, e: failures.append(e)) == []
    assert ["buy some" in str(failures[0]), "out of tensor cores" in str(failures[1])] == [True, True]


def test_absent_backend_keeps_its_exit_code_across_the_process(tmp_path: Path) -> None:
    with pytest.raises(BackendAbsent, match="buy some") as caught:
        measure([engine(tmp_path, "absent", "absent")], QUICK, opener=open_scripted)
    assert caught.value.exit_code == 5


def test_nan_outputs_make_the_measurement_invalid(tmp_path: Path) -> None:
    (result,) = measure([engine(tmp_path, "nan", "nan")], QUICK, opener=open_scripted)
    assert result.verdict.status == "INVALID"
    assert "NaN" in result.verdict.reasons[0]
    assert result.scenario.inner > 1  # it takes microseconds, so a sample is many calls


def test_too_few_samples_for_a_tail_are_said_not_made_up(tmp_path: Path) -> None:
    settings = replace(QUICK, iterations=5, duration_s=0.05, percentile=(99.9,))
    (result,) = measure([engine(tmp_path, "slow", "sleep 5")], settings, opener=open_scripted)
    assert result.stats["latency_ms"].percentiles["p90"] is None
    for text in ("too few for p90 (64 needed)", "too few for p99.9 (6636 needed)"):
        assert any(text in warning for warning in result.warnings)


def test_a_process_ends_before_the_next_one_begins(tmp_path: Path) -> None:
    settings = replace(QUICK, processes=3, turns=2, iterations=12)
    paths = [engine(tmp_path, name, "sleep 1") for name in ("engine", "other")]
    for result in measure(paths, settings, opener=open_scripted):
        assert result.scenario.processes == 3
        assert result.scenario.rounds == len(result.samples_ns) == 6
        assert [len(block) for block in result.blocks] == [
            len(a) + len(b) for a, b in zip(result.samples_ns[::2], result.samples_ns[1::2], strict=True)
        ]


def test_engines_share_a_processor_and_the_next_processes_the_next(tmp_path: Path) -> None:
    paths = [engine(tmp_path, name, "sleep 1") for name in ("engine", "other")]
    settings = replace(QUICK, processes=2, turns=1, duration_s=0.02, iterations=4)
    one, other = (result.scenario.processors for result in measure(paths, settings, opener=open_scripted))
    known = fastest_processors()
    assert one == other == [[known[i % len(known)]] for i in range(2)]
    chosen = replace(settings, affinity=(known[0],))
    assert measure(paths[:1], chosen, opener=open_scripted)[0].scenario.processors == [[known[0]]] * 2


def test_what_has_been_measured_is_told_between_processes(tmp_path: Path) -> None:
    settings = replace(QUICK, processes=4, turns=1, duration_s=0.02, iterations=4)
    paths = [engine(tmp_path, name, "sleep 1") for name in ("engine", "other")]
    kept: list[list[LatencyResult]] = []
    last = measure(paths, settings, opener=open_scripted, on_process=lambda so_far: kept.append(list(so_far)))
    assert [[one.scenario.processes for one in each] for each in kept] == [[2, 2], [3, 3]]
    for each in kept:
        path = tmp_path / "kept.json"
        path.write_text(dump(each))
        assert load_latency(path) == each
        for before, after in zip(each, last, strict=True):
            assert after.samples_ns[: len(before.samples_ns)] == before.samples_ns
            assert before.verdict.status == "INVALID"
            done = before.scenario.processes
            assert before.verdict.reasons[0] == f"the measurement did not finish: {done} of 4 processes"
    assert [len(one.monitor.during) for one in last] == [4, 4]
    assert not any("did not finish" in reason for one in last for reason in one.verdict.reasons)


def test_no_more_processes_than_the_precision_needs(tmp_path: Path) -> None:
    paths = [engine(tmp_path, "engine", "sleep 2")]
    settings = replace(QUICK, processes=9, turns=1, duration_s=0.05, iterations=10, precision=1e3)
    assert measure(paths, settings, opener=open_scripted)[0].scenario.processes == 6


def test_a_precision_that_was_not_reached_is_told(tmp_path: Path) -> None:
    paths = [engine(tmp_path, "engine", "sleep 2")]
    (result,) = measure(paths, replace(QUICK, processes=2, precision=1e-9), opener=open_scripted)
    assert any("known to within" in text for text in result.warnings)
    assert any("2 worker processes are too few" in text for text in result.warnings)


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the system does not count waiting")
def test_an_engine_that_had_to_wait_for_a_processor_is_invalid(tmp_path: Path) -> None:
    settings = replace(QUICK, affinity=(min(os.sched_getaffinity(0)),))
    path = engine(tmp_path, "engine", "spin 1")
    busy = f"import os\nos.sched_setaffinity(0, {set(settings.affinity or ())})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", busy]) as other:
        try:
            (result,) = measure([path], settings, opener=open_scripted)
        finally:
            other.kill()
    assert result.contention.waited is not None
    assert result.contention.waited > 0.2
    assert result.verdict.status == "INVALID"
    assert any("had to wait for a processor" in reason for reason in result.verdict.reasons)


def test_work_is_told_where_the_file_tells_it(tmp_path: Path) -> None:
    paths = [engine(tmp_path, name, script) for name, script in (("told", "spin 1"), ("silent", "sleep 1"))]
    reference = ReferenceNetwork(engine(tmp_path, "peak", "spin 1"), "int8", 20_000_000)
    told, silent = measure(paths, QUICK, references=[reference], opener=open_scripted)
    assert told.work is not None
    assert silent.work is None
    assert told.work.gmacs_per_s == pytest.approx(5e6 / told.stats["latency_ms"].median.value / 1e6)
    assert told.work.peak_gmacs_per_s is None  # the reference networks are ONNX Runtime's, this engine is not


def test_the_network_of_the_pace_has_a_turn_beside_every_turn(tmp_path: Path) -> None:
    paths = [engine(tmp_path, name, "sleep 1") for name in ("one", "other")]
    names = {"peak": "sleep 4", "pace": "sleep 2"}
    known = [ReferenceNetwork(engine(tmp_path, n, script), "int8", 1, n == "pace") for n, script in names.items()]
    settings = replace(QUICK, processes=2, turns=2, duration_s=0.02, iterations=4)
    for result in measure(paths, settings, references=known, opener=open_scripted):
        assert result.pace is not None
        assert result.pace.sha256 == hashlib.sha256(b"sleep 2").hexdigest()
        assert result.pace.version == "1"
        assert len(result.pace.rounds_ms) == len(result.samples_ns) == 4
        assert all(ms >= 2 for ms in result.pace.rounds_ms)
        assert not any(Path(path).stem in names for path in result.scenario.interleaved_with)


@pytest.mark.parametrize("script", ["absent", "crash 50"])  # when it is opened; in the middle of its turns
def test_a_reference_network_that_fails_leaves_the_pace_unknown(tmp_path: Path, script: str) -> None:
    broken = ReferenceNetwork(engine(tmp_path, "broken", script), "int8", 1, throughout=True)
    settings = replace(QUICK, duration_s=0.8)
    (result,) = measure([engine(tmp_path, "one", "sleep 1")], settings, references=[broken], opener=open_scripted)
    assert result.pace is None
    assert result.scenario.rounds == 5
    assert result.scenario.failed == {}


def test_reference_networks_do_not_go_on_alone(tmp_path: Path) -> None:
    pace = ReferenceNetwork(engine(tmp_path, "pace", "count"), "int8", 1, throughout=True)
    settings = replace(QUICK, processes=4)
    failed: list[Path] = []
    paths = [engine(tmp_path, "absent", "absent")]
    assert not measure(
        paths, settings, references=[pace], opener=open_scripted, on_failure=lambda path, _: failed.append(path)
    )
    assert failed == paths
    assert len((tmp_path / "pace.opened").read_text()) == 1


@pytest.mark.skipif(len(fastest_processors()) < 2, reason="there is one processor")
def test_streams_run_at_the_same_time(tmp_path: Path) -> None:
    path = engine(tmp_path, "engine", "sleep 4")
    pace = ReferenceNetwork(engine(tmp_path, "pace", "sleep 2"), "int8", 1, throughout=True)
    settings = replace(QUICK, processes=2, turns=2, iterations=8, batch=3)
    alone, streams = (
        measure([path], replace(settings, streams=n), references=[pace], opener=open_scripted)[0] for n in (1, 2)
    )
    assert (alone.pace is None, streams.pace is None) == (False, True)
    assert (alone.scenario.name, streams.scenario.name, streams.scenario.streams) == ("single-stream", "offline", 2)
    rates = [3e9 / np.mean(samples) for samples in alone.samples_ns]
    assert alone.throughput.value == pytest.approx(np.median(rates))
    fastest, slowest = ([f(samples) for samples in streams.samples_ns] for f in (min, max))
    assert 2 * 3e9 / max(slowest) <= streams.throughput.value <= 2 * 3e9 / min(fastest)
    assert all(bound == fastest_processors()[:2] for bound in streams.scenario.processors)  # each stream has its own
    assert streams.peak_memory_bytes > 1.5 * alone.peak_memory_bytes
    with pytest.raises(ConfigError, match="parallel streams: 1 against 2"):
        compare_runs([alone], [streams])


def test_a_stream_that_crashes_takes_the_engine_with_it_and_no_other(tmp_path: Path) -> None:
    """Only the first stream crashes; the second would go on for as long as the turn."""
    paths = [engine(tmp_path, name, script) for name, script in (("broken", "crash-one 150"), ("good", "sleep 1"))]
    alive = []

    def failed(path: Path, error: PipelineError) -> None:
        assert f"{path} crashed its worker" in str(error)
        alive.append(len(multiprocessing.active_children()))

    settings = replace(QUICK, streams=2, duration_s=2.0, turns=2)  # the crash comes when both are open and warm
    (result,) = measure(paths, settings, opener=open_scripted, on_failure=failed)
    assert alive == [2]  # of the other engine
    assert result.scenario.rounds == 2


@pytest.mark.skipif(len(fastest_processors()) < 2, reason="there is one processor")
def test_a_turn_is_taken_by_all_streams_at_once(tmp_path: Path) -> None:
    path = engine(tmp_path, "engine", "stamp 5")
    measure([path], replace(QUICK, streams=2, turns=2, iterations=40), opener=open_scripted)
    (begin, end), (other_begin, other_end) = (
        map(float, file.read_text().split()) for file in tmp_path.glob("engine.[0-9]*")
    )
    assert max(begin, other_begin) < min(end, other_end)
