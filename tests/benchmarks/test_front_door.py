"""The one command line: what it lists, what its help costs, and how old spellings are read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import app, main
from benchmarks.cli import spelled_out
from benchmarks.latency import main as latency

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "nncf", "onnx", "onnxruntime", "openvino", "scipy", "matplotlib")
STAGES = ("baseline", "prune", "finetune", "quantize", "sensitivity", "export", "build", "all", "config", "lint")
MEASURING = (
    "latency",
    "accuracy",
    "predict",
    "deploy",
    "compare",
    "latency_table",
    "plan_latency",
    "summary",
    "pareto",
    "plots",
    "report",
    "regression",
    "trust",
    "arm",
    "show",
    "doctor",
)
HELP = f"""
import runpy, sys
module, *words = sys.argv[1:]
sys.argv = [module, *words, "--help"]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as ended:
    assert not ended.code, ended.code
imported = [name for name in {HEAVY!r} if name in sys.modules]
assert not imported, imported
"""


@pytest.mark.parametrize(
    "words",
    [
        ("benchmarks",),
        ("compress",),
        *(("compress", stage) for stage in STAGES),
        *((f"benchmarks.{name}",) for name in MEASURING),
        *(("benchmarks", name.replace("_", "-")) for name in MEASURING),
    ],
    ids=" ".join,
)
def test_help_imports_nothing_that_takes_long(words: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-c", HELP, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: " in done.stdout


def exit_code(*argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    return int(caught.value.code or 0)


def test_the_front_door_lists_every_command_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    for name in (*STAGES, *(name.replace("_", "-") for name in MEASURING)):
        [line] = [line for line in lines if line.startswith(f"│ {name} ")]
        assert len(line.strip("│ ").split()) > 3, f"nothing is said of {name}"


def test_it_tells_its_version_and_completes_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == 0
    assert capsys.readouterr().out.strip()[0].isdigit()
    assert "latency-table" in app.generate_completion(shell="bash")


def test_lints_json_is_a_switch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("lint", str(tmp_path / "gone.onnx"), "--json") == 1
    assert "gone.onnx" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["--json"], ["--json=-"]),
        (["--json", "-"], ["--json=-"]),
        (["--json=a.json"], ["--json=a.json"]),
        (["--json", "a.json", "--csv", "-"], ["--json", "a.json", "--csv=-"]),
        ([], []),
    ],
)
def test_standard_output_is_a_dash_or_nothing(words: list[str], read: list[str]) -> None:
    assert spelled_out(words) == read


@pytest.mark.parametrize("words", [["gone.onnx", "lost.onnx"], ["--engine", "gone.onnx", "lost.onnx"]])
def test_engine_files_may_stand_alone(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert latency([*words, "--fast"]) == 1
    said = capsys.readouterr().err
    assert "gone.onnx" in said
    assert "lost.onnx" in said


def test_no_engine_is_a_usage_error_that_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert latency(["--fast"]) == 2
    assert "--engine requires an argument" in capsys.readouterr().err


def test_doctor_says_what_is_here_and_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("doctor", "--json", str(tmp_path / "found.json")) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert {one["of"] for one in found} >= {
        "software",
        "engine",
        "INT8",
        "processor",
        "memory",
        "GPU",
        "clock",
        "target",
    }
    assert {one["name"] for one in found if one["of"] == "engine"} >= {"onnxruntime", "openvino", "tensorrt"}
    for one in found:
        assert one["name"] in said
        assert one["here"] is not False or one["remedy"] or one["of"] == "GPU"


def test_show_prints_a_table_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("show", str(ROOT / "tests/regression/latency_table.json")) == 0
    assert "dense network: " in capsys.readouterr().out
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert exit_code("show", str(tmp_path / "other.json")) == 2
    assert "latency_table.json" in capsys.readouterr().err


def test_show_prints_latencies_again(float_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    latency([str(float_onnx), "--fast", "--duration", "0.1", "--processes", "1", "--json", str(out)])
    [first] = [line for line in capsys.readouterr().out.splitlines() if float_onnx.name in line and "|" in line]
    assert exit_code("show", str(out)) == 0
    assert first in capsys.readouterr().out


def test_of_a_flag_that_is_given_twice_the_last_one_counts() -> None:
    _, bound, _ = app.parse_args(["latency", "a.onnx", "--batch", "2", "--batch", "3"], exit_on_error=False)
    assert bound.arguments["scenario"].batch == 3
