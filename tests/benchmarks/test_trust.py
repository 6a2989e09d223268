"""The checks of the harness, on a tiny network: that each measures what it says. What it finds is the machine's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from benchmarks.selfcheck.checks import apart, overhead, same, slower, tools
from benchmarks.selfcheck.tools import RivalTool, rival
from benchmarks.timing.machine import fastest_processors
from benchmarks.timing.worker import Settings
from compress.errors import EngineError
from compress.progress import SILENT

QUICK = Settings(warmup_s=0.02, warmup_runs=2, duration_s=0.1, iterations=8, processes=2, turns=1)


def ratio(cell: str) -> float:
    return float(cell.split()[0])


def test_overhead_is_that_of_a_call(int8_onnx: Path) -> None:
    found = overhead(int8_onnx, QUICK, 3, SILENT)
    (_, bare), (_, ours) = found.rows
    assert 0 < ratio(bare) < 1000
    assert 0 < ratio(ours) < 1000
    assert found.verdict.startswith("the harness adds ")


def test_an_engine_against_itself_and_against_more_of_the_same_work(
    int8_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "of 1" in same(int8_onnx, QUICK, 1, SILENT).verdict
    monkeypatch.setattr("benchmarks.selfcheck.checks._MORE", 60)  # so much more that one try sees it on any machine
    found = slower(int8_onnx, replace(QUICK, processes=3, duration_s=0.3), 1, SILENT)
    assert ratio(found.rows[0][1]) > 1.5


@pytest.mark.slow
def test_runs_apart_are_paired(int8_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.selfcheck.checks._RUNS_A_SPACE", 1)
    found = apart(int8_onnx, QUICK, 2, SILENT, minutes=1e-6)
    assert len(found.rows) == 2
    assert found.rows[0][0] != found.rows[0][1]
    assert all(ratio(cell) > 0 for row in found.rows for cell in row if cell)
    assert all(one.pace is not None for one in found.results)


@pytest.mark.slow
def test_the_runtimes_own_tool_times_the_same_file(float_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.selfcheck.tools._SECONDS", 0.2)
    found = tools(float_onnx, replace(QUICK, threads=psutil.cpu_count(logical=False) or 1), 2, SILENT)
    assert 0.1 < ratio(found.rows[0][2]) < 10
    with pytest.raises(EngineError, match="only batch 1 and one thread per core"):
        rival(float_onnx, replace(QUICK, threads=1000))


@pytest.mark.skipif(not fastest_processors(), reason="the system cannot bind a process")
def test_a_tool_is_bound_to_the_processors_that_the_harness_has() -> None:
    last = fastest_processors()[-1]
    command = [
        sys.executable,
        "-c",
        "import os; print('bound to', sum(os.sched_getaffinity(0)), len(os.sched_getaffinity(0)))",
    ]
    before = os.sched_getaffinity(0)
    tool = RivalTool("a tool", command, "mean", r"bound to (\d+) 1$")
    assert tool.run(10.0, [last]) == last
    assert os.sched_getaffinity(0) == before


def test_a_tool_that_fails_says_why() -> None:
    command = [sys.executable, "-c", "raise SystemExit('out of paper after {iterations}')"]
    broken = RivalTool("a tool", command, "mean", "x")
    with pytest.raises(EngineError, match="a tool failed: out of paper after 500"):
        broken.run(10.0)


@pytest.mark.slow
def test_the_command_finds_more_work_in_processes_of_its_own(int8_onnx: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.trust", "slower", "--engine", str(int8_onnx), "--preset", "fast"]
    done = subprocess.run([*command, "--tries", "2", "--json", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 4), done.stderr  # 4: this machine is not quiet
    assert "of the same work" in done.stdout
    assert len(json.loads(out.read_text())["rows"]) == 2
