"""What ``make deploy`` would run, and what the help of both commands costs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import deploy

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_gives_the_built_engine_and_the_runs_images(tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "net_int8.onnx").touch()
    done = subprocess.run(
        ["make", "-n", "deploy", f"RUN={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    [line] = [line for line in done.stdout.splitlines() if "benchmarks.deploy" in line]
    words = line.replace("'", "").split(" -m benchmarks.deploy ")[1].split()
    _, bound, _ = deploy.app.parse_args(words, exit_on_error=False)
    assert bound.arguments["engine"] == tmp_path / "build" / "net_int8.onnx"
    assert bound.arguments["output"] == tmp_path / "deploy"
    assert bound.arguments["configured"].load().run.dir == tmp_path


@pytest.mark.parametrize("words", [["benchmarks.predict"], ["benchmarks.deploy"], ["benchmarks", "predict"]])
def test_help_imports_nothing_that_takes_long(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *words, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage: " in done.stdout
    assert not [name for name in ("torch", "onnx", "onnxruntime", "numpy") if f"| {name}\n" in done.stderr]
