from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from benchmarks.latency import main, parser, settings_of
from benchmarks.peers.__main__ import main as peer
from benchmarks.schema import json_schema


def test_presets_and_overrides() -> None:
    settings = settings_of(parser().parse_args(["--engine", "a.onnx", "--fast", "--duration", "3", "--threads", "2"]))
    assert (settings.duration_s, settings.threads, settings.processes) == (3.0, 2, 1)
    assert settings_of(parser().parse_args(["--engine", "a.onnx", "--rigorous"])).processes == 4


@pytest.mark.parametrize(
    "flags", [["--batch", "0"], ["--duration", "-1"], ["--seed", "-1"], ["--fast", "--rigorous"], ["--affinity", "x"]]
)
def test_usage_mistakes_exit_2(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--engine", "a.onnx", *flags])
    assert caught.value.code == 2


@pytest.mark.parametrize("flags", [["--seed", "-1"], ["--images", "-5"], ["--images", "0"]])
def test_usage_mistakes_of_the_peer_exit_2(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        peer(["ort_minmax", "--fp32", "a.onnx", "--data", "digits", "--out", "b.onnx", *flags])
    assert caught.value.code == 2


def test_missing_engine_exits_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--engine", str(tmp_path / "gone.onnx")]) == 1
    assert "no such engine file" in capsys.readouterr().err


def test_two_engines_side_by_side(
    float_onnx: Path, int8_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.json"
    flags = ["--fast", "--duration", "0.2", "--batch", "2", "--data", "digits", "--json", str(out)]
    assert main(["--engine", str(float_onnx), str(int8_onnx), *flags]) in (0, 4)  # 4: this machine is not quiet
    table = capsys.readouterr().out
    assert "tiny_fp32.onnx" in table
    assert "tiny_int8.onnx" in table
    results = json.loads(out.read_text())
    for result in results:
        jsonschema.validate(result, json_schema())
    assert results[0]["scenario"]["shape"] == [2, 3, 64, 64]
    assert results[0]["scenario"]["inputs"] == "images"
    assert results[1]["comparison"]["baseline"] == str(float_onnx)
