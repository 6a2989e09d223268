"""Two processes under torchrun train one network."""

import json
import subprocess
import sys

import pytest
import torch

SCRIPT = """
import hashlib, json, os, sys
from pathlib import Path
import torch
from calibration.datasets import load_data
from calibration.preprocess import Preprocess
from compress.config import TrainConfig, load_config
from compress.models.registry import build
from compress.run import Run
from compress.train.evaluate import evaluate
from compress.train.loop import fit
from compress.train.stage import baseline

out = Path(sys.argv[1])
data, preprocess = load_data("digits"), Preprocess(size=16, resize=16, mean=(0.3,) * 3, std=(0.35,) * 3)
torch.manual_seed(0)
net = build("cifar_resnet20", 10)
config = TrainConfig(batch_size=32, lr=0.1, flip=False, device="cpu")
history = fit(net, data.train, data.holdout, preprocess, config, epochs=2, scratch=out / "scratch")
state = b"".join(value.numpy().tobytes() for value in net.state_dict().values())
record = {
    "weights": hashlib.sha256(state).hexdigest(),
    "history": history.to_json(),
    "measured": evaluate(net, data.holdout, preprocess).top1,
    "top1": evaluate(net, data.eval, preprocess).top1,
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
    history = one["history"]
    assert history["epochs"][history["best"]]["top1"] == pytest.approx(one["measured"])  # no image counted twice
    assert (tmp_path / "run" / "baseline" / "model.safetensors").exists()
    assert torch.load(tmp_path / "scratch" / "training.pt", weights_only=True)["rows"][-1]["epoch"] == 2
