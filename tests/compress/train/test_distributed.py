"""Two processes under torchrun train one network."""

import json
import os
import subprocess
import sys

import psutil
import pytest

SCRIPT = """
import copy, hashlib, json, os, sys
from pathlib import Path
import torch
from calibration.datasets import load_data
from calibration.preprocess import Preprocess
from compress.config import FinetuneConfig, TrainConfig, load_config
from compress.frontend.raising import raised
from compress.models.model import Model
from compress.models.registry import build
from compress.run import Run
from compress.train.evaluate import evaluate
from compress.train.loop import fit
from compress.train.stage import baseline
from compress.train.tune import tune

out = Path(sys.argv[1])
data, preprocess = load_data("digits"), Preprocess(size=16, resize=16, mean=(0.3,) * 3, std=(0.35,) * 3)
torch.manual_seed(0)
net = build("cifar_resnet20", 10)
config = TrainConfig(batch_size=32, lr=0.1, flip=False, device="cpu")
net = raised(net, preprocess.shape)
history = fit(net, data.train, data.holdout, preprocess, config, epochs=2, scratch=out / "scratch")
student = Model(copy.deepcopy(net), "cifar_resnet20", preprocess, tuple("0123456789"))
with torch.no_grad():
    student.net.get_submodule("layer2.1.conv1").weight[::2] = 0
mimic = FinetuneConfig(recipe="mimic", epochs=2, steps_per_epoch=8, accumulate=2, ema=0.5, flip=False, device="cpu")
learned = tune(student.net, student, net, data, mimic)
state = b"".join(value.numpy().tobytes() for value in net.state_dict().values())
record = {
    "weights": hashlib.sha256(state).hexdigest(),
    "history": history.to_json(),
    "measured": evaluate(net, data.holdout, preprocess).top1,
    "top1": evaluate(net, data.eval, preprocess).top1,
    "mimic": learned.to_json(),
    "mimic_sum": float(sum(value.double().sum() for value in student.net.state_dict().values())),
}
(out / f"rank{os.environ.get('RANK', 0)}.json").write_text(json.dumps(record))
quick = ["model.arch=cifar_resnet20", "data.input_size=16", "train.epochs=1", "train.device=cpu"]
for _ in range(2):  # the second finds the first one's output
    baseline(load_config(None, quick), Run(out / "run"))
"""


@pytest.mark.dist
def test_two_processes_train_one_network(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, tmp_path]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    one, other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert one == other
    assert one["top1"] > 0.8
    errors = [row["error"] for row in one["mimic"]["epochs"]]
    assert errors[-1] < errors[0]
    history = one["history"]
    assert history["epochs"][history["best"]]["top1"] == pytest.approx(one["measured"])  # no image counted twice
    assert (tmp_path / "run" / "baseline" / "model.safetensors").exists()
    assert (tmp_path / "scratch" / "training.pt").exists()


QUICK = """
[run]
dir = "{run}"
[model]
arch = "cifar_resnet20"
[data]
input_size = 16
[train]
epochs = {epochs}
[prune]
macs = "60%"
multiple = 4
min_width = 4
images = 32
rounds = 2
[finetune]
epochs = 1
[quantize]
calibration_images = 20
mode = "qat"
[qat]
epochs = 1
"""


def begin(folder, *stage, epochs=1):
    config = folder / "c.toml"
    config.write_text(QUICK.format(run=folder / "run", epochs=epochs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "compress"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += [*stage, "--config", str(config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def said_by_us(lines):
    return [line for line in lines if line.startswith(("error: ", "stopped"))]


@pytest.mark.dist
def test_losses_and_calibrations_are_made_once_and_all_stages_end(tmp_path):
    process = begin(tmp_path, "all")
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert len([line for line in said.splitlines() if line.startswith("ort-x86-")]) == 1
    assert len([line for line in said.splitlines() if line.startswith("obs-")]) == 2  # one a round
    run = tmp_path / "run"
    assert (run / "build" / "cifar_resnet20_int8.onnx").exists()
    assert not [path.name for path in run.iterdir() if path.name.startswith(".locks")]


@pytest.mark.dist
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_dies_ends_the_others_with_one_message(tmp_path, rank):
    process, lines = begin(tmp_path, "baseline", epochs=100), []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("epoch 1/"):
            children = psutil.Process(process.pid).children(recursive=True)
            next(child for child in children if child.environ().get("RANK") == rank).kill()
    assert process.wait(timeout=100) != 0
    assert len(said_by_us(lines)) == 1


@pytest.mark.dist
def test_a_mistake_that_ends_all_processes_is_said_once(tmp_path):
    process = begin(tmp_path, "baseline", "--set", f"model.weights={tmp_path / 'gone.pth'}")
    said, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert [line.partition(" at ")[0] for line in said_by_us(said.splitlines())] == ["error: no checkpoint"]
