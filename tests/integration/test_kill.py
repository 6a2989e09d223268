"""A pipeline that is killed again and again comes to the same bytes, and two at once do not harm one another.

``make kill-test KILLS=50`` kills it fifty times; ``make test-all`` a few times. The moments are random, but for a seed
that is printed with each of them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", "3"))
STAGES = ("baseline", "prune", "finetune", "quantize", "export", "build")
CONFIG = """
[run]
dir = "{run}"
[model]
arch = "cifar_resnet20"
[data]
input_size = 16
[train]
epochs = 2
flip = false
[prune]
macs = "60%"
multiple = 4
min_width = 4
images = 32
[finetune]
epochs = 1
flip = false
[quantize]
calibration_images = 20
"""


def begin(run: Path, *before: str) -> subprocess.Popen[bytes]:
    config = run.with_suffix(".toml")
    config.write_text(CONFIG.format(run=run))
    command = [*before, sys.executable, "-m", "compress", "all", "--config", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> str:
    _, said = process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


def outputs(run: Path) -> dict[str, dict[str, str]]:
    """SHA-256 of every file that a stage has written, by stage."""
    return {stage: json.loads((run / stage / "stage.json").read_text())["outputs"] for stage in STAGES}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, str]], float]:
    """What an undisturbed pipeline writes, and the seconds that it takes."""
    run = tmp_path_factory.mktemp("whole") / "run"
    start = time.monotonic()
    finish(begin(run))
    return outputs(run), time.monotonic() - start


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_killed_pipeline_comes_to_the_same_bytes(
    tmp_path: Path, whole: tuple[dict[str, dict[str, str]], float], seed: int
) -> None:
    run, (expected, seconds) = tmp_path / "run", whole
    moment = random.Random(seed).uniform(0, seconds)
    process = begin(run)
    time.sleep(moment)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finish(begin(run))
    sys.stdout.write(f"killed after {moment:.1f} of {seconds:.1f} s (seed {seed})\n")
    assert outputs(run) == expected
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


def test_two_at_once_come_to_the_same_bytes(tmp_path: Path, whole: tuple[dict[str, dict[str, str]], float]) -> None:
    """Where it can be, each in a process namespace of its own, as in a container: both have the same process ids."""
    run, before = tmp_path / "run", ("unshare", "--fork", "--pid", "--kill-child", "--mount-proc")
    alone = shutil.which("unshare") is not None and subprocess.run([*before, "true"], capture_output=True, check=False)
    apart = before if alone and alone.returncode == 0 else ()
    both = [begin(run, *apart) for _ in range(2)]
    said = [finish(process) for process in both]
    assert outputs(run) == whole[0]
    assert sum(text.count("up to date") for text in said) >= len(STAGES)
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]
