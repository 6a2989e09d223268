"""A user's own backbone: no classifier, two outputs, convolutions with bias, its class in the user's file only."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from compress.engines.base import open_engine

ROOT = Path(__file__).parent.parent.parent
NETS = '''
import torch.nn.functional as F
from torch import nn

class Block(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.a, self.b = nn.Conv2d(i, o, 3, i // o and 1 or 2, 1), nn.Conv2d(o, o, 3, 1, 1)
        self.skip = nn.Identity() if i == o else nn.Conv2d(i, o, 1, 2)

    def forward(self, x):
        return F.relu(self.b(F.relu(self.a(x))) + self.skip(x))

class Backbone(nn.Module):
    """Feature maps at two strides."""

    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1)
        self.low = nn.Sequential(Block(width, width), Block(width, width))
        self.high = nn.Sequential(Block(width, 2 * width), Block(2 * width, 2 * width))

    def forward(self, x):
        low = self.low(F.relu(self.stem(x)))
        return low, self.high(low)
'''


def test_a_backbone_goes_through_every_stage(tmp_path: Path) -> None:
    (tmp_path / "my_nets.py").write_text(NETS)
    build = {"width": 16}
    sys.path.insert(0, str(tmp_path))
    try:
        from my_nets import Backbone  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    torch.manual_seed(0)
    save_file(Backbone(**build).state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "c.toml").write_text(f"""
        [run]
        dir = "{tmp_path / "run"}"
        name = "mine"
        [model]
        arch = "my_nets:Backbone"
        args = {{ width = 16 }}
        weights = "{tmp_path / "w.safetensors"}"
        [data]
        input_size = 32
        [prune]
        macs = "70%"
        images = 40
        multiple = 4
        min_width = 4
        depth = false
        [finetune]
        epochs = 0
        [quantize]
        calibration_images = 20
    """)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}

    def run(*argv: str, codes: tuple[int, ...] = (0,)) -> str:
        command = [sys.executable, "-m", *argv, "--config", str(tmp_path / "c.toml")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode in codes, done.stderr
        return done.stdout

    run("compress", "all")
    counts = json.loads((tmp_path / "run" / "build" / "mine_int8.onnx.json").read_text())["operators"]
    assert counts["QLinearConv"] == 10
    with open_engine(tmp_path / "run" / "export" / "mine_int8.onnx") as engine:
        assert [spec.name for spec in engine.outputs] == ["output0", "output1"]
        assert [spec.shape[1] for spec in engine.outputs] == [16, 32]  # what the caller sees is never cut
        assert engine.metadata is not None
        assert engine.metadata.classes == ()
    table = run("benchmarks.summary", "--fast", codes=(0, 4))  # 4: this machine is too busy to count
    assert "pruned INT8" in table


def test_scoring_a_backbone_by_labels_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "my_nets2.py").write_text(NETS)
    overrides = [f"run.dir={tmp_path / 'run'}", "model.arch=my_nets2:Backbone", "model.args={width = 16}"]
    overrides += ["data.input_size=32", "train.epochs=0", "prune.importance=taylor"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "compress", "all", *(arg for o in overrides for arg in ("--set", o))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "prune.importance=obs" in done.stderr
    assert "Traceback" not in done.stderr
