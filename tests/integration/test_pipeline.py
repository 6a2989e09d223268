"""The main job in small: every stage on real data, through the command line, then what a user would check."""

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from compress.engines.base import open_engine
from compress.export.overflow import pairs_in_danger
from compress.export.qdq import Graph

ROOT = Path(__file__).parent.parent.parent
STAGES = ("baseline", "prune", "finetune", "quantize", "export", "build")
CONFIG = """
[run]
dir = "{run}"
name = "tiny"
[model]
arch = "cifar_resnet20"
[data]
kind = "digits"
input_size = 32
[train]
epochs = 2
flip = false
[prune]
macs = "50%"
multiple = 4
min_width = 4
images = 64
[finetune]
epochs = 1
flip = false
[quantize]
calibration_images = 50
"""


def command(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *map(str, argv)], cwd=ROOT, capture_output=True, text=True, env=environment, check=False
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    path = folder / "tiny.toml"
    path.write_text(CONFIG.format(run=folder / "run"))
    done = command("compress", "all", "--config", path)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def run(config: Path) -> Path:
    return config.parent / "run"


def test_every_stage_left_its_manifest_and_nothing_half_made(run: Path) -> None:
    assert all((run / stage / "stage.json").exists() for stage in STAGES)
    assert not [path for path in run.iterdir() if path.name.startswith(".") and path.name != ".scratch"]


def test_the_budget_is_met(run: Path) -> None:
    dense = onnx.load(run / "export" / "tiny_dense_fp32.onnx")
    pruned = onnx.load(run / "export" / "tiny_fp32.onnx")
    macs = [int({p.key: p.value for p in model.metadata_props}["compress.macs"]) for model in (dense, pruned)]
    assert 0.4 * macs[0] < macs[1] <= 0.5 * macs[0]


def test_the_exported_files_are_valid_and_carry_what_they_need(run: Path) -> None:
    for name, precision in (("tiny_dense_fp32", "fp32"), ("tiny_fp32", "fp32"), ("tiny_int8", "int8")):
        path = run / "export" / f"{name}.onnx"
        onnx.checker.check_model(onnx.load(path), full_check=True)
        with open_engine(path) as engine:
            assert engine.metadata is not None
            assert engine.metadata.precision == precision
            assert engine.metadata.preprocess.size == 32
            assert engine.metadata.classes == tuple("0123456789")
            assert engine.inputs[0].shape == (None, 3, 32, 32)


def test_no_pair_of_trained_weights_can_overflow(run: Path) -> None:
    assert not pairs_in_danger(Graph(onnx.load(run / "export" / "tiny_int8.onnx")))


def test_the_engine_runs_in_int8(run: Path) -> None:
    counts = json.loads((run / "build" / "tiny_int8.onnx.json").read_text())["operators"]
    convolutions = [n for n in onnx.load(run / "export" / "tiny_fp32.onnx").graph.node if n.op_type == "Conv"]
    assert counts["QLinearConv"] == len(convolutions) > 0
    assert "Conv" not in counts


def test_asking_again_does_nothing(config: Path, run: Path) -> None:
    before = {stage: (run / stage / "stage.json").read_text() for stage in STAGES}
    again = command("compress", "all", "--config", config)
    assert again.returncode == 0
    assert again.stderr.count("up to date") == len(STAGES) + 2  # and the losses and the calibration
    assert before == {stage: (run / stage / "stage.json").read_text() for stage in STAGES}


def test_other_settings_redo_only_what_depends_on_them(config: Path) -> None:
    again = command("compress", "all", "--config", config, "--set", "target.threads=2")
    assert again.returncode == 0
    assert again.stderr.count("up to date") == len(STAGES) + 1  # all but the engine


def test_the_summary_compares_before_and_after(config: Path, run: Path) -> None:
    done = command("benchmarks.summary", "--config", config, "--fast")
    assert done.returncode in (0, 4), done.stderr  # 4: this machine is too busy to count
    assert "INT8" in done.stdout
    rows = json.loads((run / "summary.json").read_text())["rows"]
    assert len(rows) == 3
    assert rows[0]["macs"] > rows[1]["macs"] == rows[2]["macs"]
    assert rows[2]["bytes"] < rows[1]["bytes"]


def test_accuracy_of_the_engine_is_paired_with_the_unpruned_network(config: Path, run: Path) -> None:
    engine, other = run / "build" / "tiny_int8.onnx", run / "export" / "tiny_dense_fp32.onnx"
    done = command("benchmarks.accuracy", "--engine", engine, "--against", other, "--data", "digits")
    assert done.returncode == 0, done.stderr
    assert "top-1" in done.stdout


def test_tensorrt_says_what_is_missing_and_exits_5(config: Path) -> None:
    done = command("compress", "build", "--engine", "tensorrt", "--config", config)
    if "was quantized for target" in done.stderr:
        pytest.skip("TensorRT and a GPU are here")
    assert done.returncode == 5
    assert "TensorRT" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("stage", "overrides", "message"),
    [
        ("prune", ["prune.macs=0.1%"], "cannot be met"),
        ("prune", ["prune.keep=['layer9.*']"], "no layer is called"),
        ("prune", ["prune.latency=50%"], "there is no latency table"),
        ("quantize", ["quantize.mode=qta"], "'ptq' or 'qat'"),
        ("baseline", ["data.kind=imagefolder", "data.train=nowhere"], "no folder nowhere"),
        ("baseline", ["model.arch=resnet81"], "unknown architecture 'resnet81'"),
    ],
)
def test_a_users_mistake_is_told_and_loses_nothing(
    config: Path, run: Path, stage: str, overrides: list[str], message: str
) -> None:
    before = (run / stage / "stage.json").read_text()
    done = command("compress", stage, "--config", config, *(arg for o in overrides for arg in ("--set", o)))
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert (run / stage / "stage.json").read_text() == before
