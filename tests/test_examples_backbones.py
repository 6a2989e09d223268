"""The examples of networks without logits go through all stages; their outputs keep their names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from compress.config import load_config
from compress.engines.base import open_engine

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "backbones"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_an_example_is_a_valid_configuration(path: Path) -> None:
    assert load_config(path).run.name == path.stem


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "outputs"), [("segmentation", ["out"]), ("detection", ["0", "1", "2", "pool"]), ("embedding", ["output"])]
)
def test_a_network_without_logits_goes_through_all_stages(name: str, outputs: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = [f"run.dir={run}", "data.holdout=0.9", "prune.images=16", "quantize.calibration_images=16"]
    command = [sys.executable, "-m", "compress", "all", "--config", str(EXAMPLES / f"{name}.toml")]
    command += [word for override in overrides for word in ("--set", override)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "without labels" in done.stdout + done.stderr
    history = json.loads((run / "finetune" / "history.json").read_text())
    errors = [row["error"] for row in history["epochs"]]
    assert errors[history["best"]] == min(errors)
    with open_engine(run / "export" / f"{name}_int8.onnx") as engine:
        assert len(engine.outputs) == len(outputs)
        if name != "embedding":
            assert [spec.name for spec in engine.outputs] == outputs
        assert engine.metadata is not None
        assert engine.metadata.classes == ()
