from __future__ import annotations

import csv
import json
from pathlib import Path

import jsonschema
import onnxruntime
import pytest

from benchmarks import latency
from benchmarks.latency import main
from benchmarks.results.schema import json_schema
from benchmarks.rivals.peers.__main__ import main as peer
from benchmarks.timing.worker import Settings


def settings_of(*words: str) -> Settings:
    """What the words of a command line come to."""
    _, bound, _ = latency.app.parse_args(words, exit_on_error=False)
    bound.apply_defaults()
    return latency.settings_of(*(bound.arguments[name] for name in ("engines", "scenario", "effort")))


def test_presets_and_overrides() -> None:
    settings = settings_of("a.onnx", "--fast", "--duration", "3", "--threads", "2")
    assert (settings.duration_s, settings.threads, settings.processes) == (3.0, 2, 6)
    assert settings_of("--engine", "a.onnx", "--rigorous").processes == 20


@pytest.mark.parametrize(
    "flags",
    [
        ["--batch", "0"],
        ["--duration", "-1"],
        ["--seed", "-1"],
        ["--fast", "--rigorous"],
        ["--affinity", "x"],
        ["--percentile", "100"],
    ],
)
def test_usage_mistakes_exit_2(flags: list[str]) -> None:
    assert main(["--engine", "a.onnx", *flags]) == 2


@pytest.mark.parametrize("flags", [["--seed", "-1"], ["--images", "-5"], ["--images", "0"]])
def test_usage_mistakes_of_the_peer_exit_2(flags: list[str]) -> None:
    assert peer(["ort_minmax", "--fp32", "a.onnx", "--data", "digits", "--out", "b.onnx", *flags]) == 2


def test_percentiles_get_the_samples_that_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--engine", "a.onnx", "--percentile", "99", "99.9"]
    assert settings_of(*asked).iterations == 6636
    assert settings_of(*asked, "--iterations", "9000").iterations == 9000
    assert main(["--engine", "a.onnx", "--fast", "--precision", "1%"]) == 2
    assert "give more with --processes" in capsys.readouterr().err


def test_more_streams_than_processors_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--engine", "a.onnx", "--streams", "2", "--threads", "5", "--affinity", "0,1,2,3,4,5"]) == 2
    assert "give 1 with --streams" in capsys.readouterr().err
    wide = ["--engine", "a.onnx", "--streams", "3", "--threads", "2", "--affinity", "0,1,2,3,4,5"]
    assert settings_of(*wide).streams == 3


def test_missing_engine_exits_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--engine", str(tmp_path / "gone.onnx")]) == 1
    assert "no such engine file" in capsys.readouterr().err


def test_fail_on_needs_something_to_compare_with(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--engine", "a.onnx", "--fail-on", "median:5%"]) == 2
    assert "an earlier run with --baseline FILE" in capsys.readouterr().err
    (tmp_path / "old.json").write_text('[{"kind": "latency", "schema_version": 0}]')
    assert main(["--engine", "a.onnx", "--baseline", str(tmp_path / "old.json")]) == 2
    assert "schema version 0" in capsys.readouterr().err


def test_two_engines_side_by_side(
    float_onnx: Path, int8_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, table, page = tmp_path / "result.json", tmp_path / "result.csv", tmp_path / "result.md"
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a network")
    flags = ["--fast", "--processes", "2", "--duration", "0.2", "--batch", "2", "--data", "digits", "--json", str(out)]
    files = ["--csv", str(table), "--markdown", str(page)]
    engines = ["--engine", str(broken), str(float_onnx), str(int8_onnx)]
    assert main([*engines, *flags, *files]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("error: ") == 1
    assert "broken.onnx" in printed.err
    for text in (printed.out, page.read_text()):
        assert "| tiny_fp32.onnx |" in text
        assert "| tiny_int8.onnx |" in text
    results = json.loads(out.read_text())
    for result in results:
        jsonschema.validate(result, json_schema())
        assert list(result["scenario"]["failed"]) == [str(broken)]
    assert results[0]["scenario"]["shape"] == [2, 3, 64, 64]
    assert results[0]["scenario"]["inputs"] == "images"
    assert results[1]["comparison"]["baseline"] == str(float_onnx)
    with table.open(newline="") as lines:
        first, second = csv.DictReader(lines)
    assert (first["engine"], first["batch"], first["ratio"]) == (str(float_onnx), "2", "")
    assert float(second["ratio"]) == results[1]["comparison"]["ratio"]["value"]
    assert float(second["median_ms_hi"]) == results[1]["stats"]["latency_ms"]["median"]["hi"]


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="it is here")
def test_absent_backend_exits_5(float_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--engine", str(float_onnx), "--device", "cuda"]) == 5
    assert f"error: {float_onnx}: " in capsys.readouterr().err
    assert main(["--engine", str(float_onnx), str(tmp_path / "gone.onnx"), "--device", "cuda"]) == 1


def test_against_an_earlier_run(
    float_onnx: Path, int8_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch of 64 against one of 1: slower on any machine."""
    earlier, page = tmp_path / "earlier.json", tmp_path / "now.md"
    flags = ["--fast", "--processes", "1", "--duration", "0.1", "--engine", str(float_onnx)]
    main([*flags, "--json", str(earlier)])
    capsys.readouterr()
    now = [*flags, "--batch", "64", "--baseline", str(earlier), "--fail-on", "median:50%", "--markdown", str(page)]
    assert main(now) == 2
    assert "batch: 1 against 64" in capsys.readouterr().err
    assert not page.exists()
    assert main([*now, "--allow-different"]) in (3, 4)  # 4: this machine is not quiet
    for text in (capsys.readouterr().out, page.read_text()):
        assert "different: tiny_fp32.onnx: batch: 1 against 64" in text
        assert "median:50%" in text
    assert main(["--engine", str(tmp_path / "gone.onnx"), "--baseline", str(earlier)]) == 1


def test_a_file_that_overflows_here_is_warned_of(overflowing_onnx: Path, sums: str, tmp_path: Path) -> None:
    out = tmp_path / "latency.json"
    effort = ["--duration", "0.05", "--warmup", "0.01", "--iterations", "12", "--processes", "2"]
    assert main(["--engine", str(overflowing_onnx), *effort, "--json", str(out)]) in (0, 4)
    (record,) = json.loads(out.read_text())
    assert record["host"]["int8_pair_sums"] == {"onnxruntime": sums}
    assert any("can overflow" in text for text in record["warnings"]) == (sums == "int16")
