"""What make would run, held against the command lines of the programs that it runs."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import accuracy, latency, latency_table, pareto, plots, summary
from compress import cli
from compress.config import Config, TargetConfig, load_config
from compress.prune.latency.machine import absence

ROOT = Path(__file__).parent.parent
APPS = {
    "compress": cli.app,
    "benchmarks.latency_table": latency_table.app,
    "benchmarks.summary": summary.app,
    "benchmarks.latency": latency.app,
    "benchmarks.accuracy": accuracy.app,
    "benchmarks.pareto": pareto.app,
    "benchmarks.plots": plots.app,
}

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*argv: str) -> subprocess.CompletedProcess[str]:
    """Ask make what it would do, whatever the make that runs these tests was told."""
    outer = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(["make", "-n", *argv], cwd=ROOT, capture_output=True, text=True, env=outer, check=False)


def planned(*argv: str) -> list[list[str]]:
    """``[module, argument, ...]`` of each Python command that make would run."""
    lines = [shlex.split(line.partition("||")[0]) for line in make(*argv).stdout.splitlines() if " -m " in line]
    return [words[words.index("-m") + 1 :] for words in lines if words[words.index("-m") + 1] in APPS]


def config_of(command: list[str]) -> Config:
    module, *words = command
    _, bound, _ = APPS[module].parse_args(words, exit_on_error=False)
    told = bound.arguments["asked" if module == "compress" else "configured"]
    return load_config(told.config, told.overrides)


def test_the_main_job_is_every_stage_and_then_the_table(tmp_path: Path) -> None:
    commands = planned("prune", "quantize", "export", f"RUN={tmp_path / 'run'}")
    stages = [command[1] for command in commands if command[0] == "compress"]
    assert stages == ["baseline", "prune", "finetune", "quantize", "export", "build"]
    assert commands[-1][0] == "benchmarks.summary"


@pytest.mark.parametrize("target", ["prune", "quantize", "export", "build", "accuracy", "pareto"])
def test_every_command_line_is_one_that_its_program_takes(target: str, tmp_path: Path) -> None:
    for command in planned(target, f"RUN={tmp_path / 'run'}", "DATA=some/images", "MODEL=resnet50", "WEIGHTS=w.pth"):
        if command[0] == "benchmarks.accuracy":
            command.append("engine.onnx")  # the wildcard finds none before the build
        config = config_of(command)
        assert config.model.arch == "resnet50"
        assert config.data.train == Path("some/images/train")


def test_your_own_weights_are_not_trained_with_the_digits_settings(tmp_path: Path) -> None:
    [first, *_] = planned("baseline", "MODEL=resnet50", "WEIGHTS=w.pth", "DATA=some/images/")
    config = config_of(first)
    assert config.train == Config().train
    assert config.train.epochs is None
    assert config.finetune.flip


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ((), "runs/resnet18-digits"),
        (("MODEL=resnet34",), "runs/resnet34-digits"),
        (("WEIGHTS=a/b.pth", "DATA=data/x/"), "runs/resnet18-b-x"),
        (("CONFIG=configs/imagenette.toml", "WEIGHTS=r.pth", "DATA=x"), "runs/resnet18-imagenette"),
        (("RUN=runs/mine", "MODEL=resnet50"), "runs/mine"),
    ],
)
def test_runs_of_different_networks_do_not_share_a_folder(variables: tuple[str, ...], folder: str) -> None:
    assert config_of(planned("baseline", *variables)[0]).run.dir == Path(folder)


def test_a_folder_with_a_space_is_refused_before_anything_runs() -> None:
    done = make("clean", "RUN=my runs")
    assert done.returncode == 2
    assert "without spaces" in done.stderr


def run_make(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run make for a target whose engine needs a GPU, as if the baseline in ``folder`` were just done."""
    baseline = folder / "baseline" / "stage.json"
    baseline.parent.mkdir(exist_ok=True)
    baseline.touch()
    done = ["-W", str(baseline), "-o", ".venv/.installed"]
    words = [*done, f"RUN={folder}", f"PY={sys.executable}", "SET=target.engine=tensorrt", *argv]
    outer = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, env=outer, check=False)


@pytest.mark.skipif(absence(TargetConfig(engine="tensorrt")) is None, reason="TensorRT runs here")
def test_only_who_asks_for_the_latency_table_is_stopped_by_an_engine_that_is_not_here(tmp_path: Path) -> None:
    asked = run_make(tmp_path, "profile")
    assert "latency_table.json] Error 5" in asked.stderr
    table = tmp_path / "latency_table.json"
    needed = run_make(tmp_path, str(table))  # as a prerequisite of prune
    assert needed.returncode == 0
    assert needed.stderr.splitlines()[-1].startswith("make goes on")
    assert not table.exists()
    table.write_text("from a kit")
    os.utime(table, (0, 0))
    assert run_make(tmp_path, str(table)).returncode == 0
    assert table.read_text() == "from a kit"
    assert table.stat().st_mtime > 0  # make does not ask again
