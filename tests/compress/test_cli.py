import subprocess
import sys
from pathlib import Path

import pytest

from compress.cli import main

STAGES = ("baseline", "prune", "finetune", "quantize", "sensitivity", "export", "build", "all")

ROOT = Path(__file__).parents[2]


def exit_code(*argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    return int(caught.value.code or 0)


def test_help_lists_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    text = capsys.readouterr().out
    assert all(stage in text for stage in STAGES)


def test_a_command_line_that_makes_no_sense_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("polish") == 2
    assert exit_code("prune", "--set", "prune.mac=3") == 2
    error = capsys.readouterr().err
    assert "did you mean 'macs'" in error
    assert "Traceback" not in error


def test_a_stage_before_its_parent_says_which_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("prune", "--set", f"run.dir={tmp_path}") == 1
    assert "python -m compress baseline" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert exit_code("baseline", "--set", f"run.dir={tmp_path / 'file' / 'run'}") == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "file") in error
    assert "Traceback" not in error


def test_a_bad_checkpoint_leaves_no_partial_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"not a checkpoint")
    code = exit_code("baseline", "--set", f"run.dir={tmp_path / 'run'}", "--set", f"model.weights={weights}")
    assert code == 1
    assert str(weights) in capsys.readouterr().err
    assert not (tmp_path / "run" / "baseline").exists()


def test_the_config_command_prints_every_key_with_its_meaning() -> None:
    command = [sys.executable, "-m", "compress", "config", "--set", "prune.macs=40%"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 'macs = "40%"' in text
    assert "# budget: " in text
