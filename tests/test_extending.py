"""The five additions of examples/extending, made from outside the package; docs/extending.md shows them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compress.config import load_config
from compress.errors import ConfigError
from compress.graph.groups import couple
from compress.graph.segments import segments
from compress.graph.tracing import trace
from compress.prune.surgery import cut, verify

EXAMPLE = Path(__file__).parents[1] / "examples" / "extending"


def run(*argv: str, plugins: str = "") -> str:
    environment = {**os.environ, "RESNET_COMPRESS_PLUGINS": plugins}
    command = [sys.executable, "-m", *argv]
    done = subprocess.run(command, cwd=EXAMPLE, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 4), done.stderr  # 4: too busy for a measurement to count
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    quick = (
        f"run.dir={out}",
        "train.epochs=1",
        "finetune.epochs=1",
        "prune.images=64",
        "quantize.calibration_images=32",
    )
    run("compress", "all", "--config", "extending.toml", *(word for one in quick for word in ("--set", one)))
    return out


def test_each_addition_is_in_what_was_made(folder: Path) -> None:
    assert [path.name.partition("-")[0] for path in (folder / "losses").iterdir() if path.is_dir()] == ["slimming"]
    assert json.loads((folder / "quantize" / "quantize.json").read_text())["calibration"]["method"] == "per_mille"
    stages = {
        name: json.loads((folder / name / "stage.json").read_text()) for name in ("baseline", "finetune", "build")
    }
    assert stages["baseline"]["settings"]["train"]["steps"] == ["noise"]
    assert stages["finetune"]["settings"]["finetune"]["steps"] == ["noise", "mixup"]
    plan = json.loads((folder / "prune" / "plan.json").read_text())
    assert plan["after"]["macs"] <= 0.6 * plan["before"]["macs"]
    assert (folder / "build" / "se_resnet_int8.reference").is_file()


def test_other_processes_know_the_engine_too(folder: Path) -> None:
    engine = str(folder / "build" / "se_resnet_int8.reference")
    quick = ("--duration", "0.2", "--processes", "2", "--warmup", "0.1")
    assert "se_resnet_int8" in run("benchmarks.latency", *quick, "--engine", engine, plugins="additions")


def test_the_gate_is_cut_along_and_its_block_can_be_removed() -> None:
    """In a process of its own: what it registers would stay for other tests."""
    subprocess.run(
        [sys.executable, "-P", __file__], cwd=EXAMPLE, env={**os.environ, "PYTHONPATH": str(EXAMPLE)}, check=True
    )


def check_gate() -> None:
    from additions import se_resnet

    torch.manual_seed(0)
    net, shape = se_resnet(10).eval(), (3, 32, 32)
    coupling = couple(net, shape)
    stream = next(group for group in coupling if len(group.writers) > 1)
    assert {slot.layer for slot in stream.writers} >= {
        "0.0",
        *(f"1.{i}.{layer}" for i in range(3) for layer in ("conv2", "excite")),
    }
    blocks = [segment for segment in segments(net, coupling, shape) if segment.removable]
    assert [block.name for block in blocks] == ["1.0", "1.1", "1.2"]
    kept = {group.name: tuple(range(0, group.units, 2)) for group in coupling}
    pruned = cut(net, coupling, kept, blocks[1:2])
    assert verify(net, pruned, coupling, kept, torch.randn(2, *shape), blocks[1:2]) < 1e-12
    assert not any("1.1" in str(node.target) for node in trace(pruned, shape).graph.nodes)


def test_an_engine_without_a_latency_table_says_so(folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.latency_table",
        "--config",
        "extending.toml",
        "--set",
        f"run.dir={folder}",
    ]
    done = subprocess.run(command, cwd=EXAMPLE, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot be measured on engine 'reference'" in done.stderr


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("prune.importance=nrm", "prune.importance: unknown importance criterion 'nrm'; did you mean 'norm'?"),
        ("quantize.method=maxmin", "quantize.method: unknown range method 'maxmin'; did you mean 'minmax'?"),
        ("target.engine=onnxrt", "unknown engine 'onnxrt'; did you mean 'onnxruntime'?"),
        ('train.steps=["mixpu"]', "unknown training step 'mixpu'; did you mean 'mixup'?"),
        ('run.plugins=["not_there"]', "plugin 'not_there' cannot be imported"),
    ],
)
def test_a_name_that_nothing_stands_for_is_an_error(setting: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESNET_COMPRESS_PLUGINS", "")
    with pytest.raises(ConfigError) as caught:
        load_config(None, [setting])
    assert said in str(caught.value)


if __name__ == "__main__":
    check_gate()
