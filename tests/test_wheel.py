"""The package as users get it: installed from a wheel, at work in a folder that has names of ours in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("benchmarks", "calibration", "compress", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)  # what is built stays out of the checkout
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, cwd=folder)
    [found] = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder), str(wheel)], check=True, cwd=folder)
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A user's folder, with packages of theirs, and an ONNX file that does nothing."""
    for name in ("benchmarks", "calibration"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the folder of the user was imported')\n")
    (tmp_path / "compress").mkdir()  # without __init__.py
    one, two = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [one], [two])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "relu.onnx")
    return tmp_path


def program(installed: Path, work: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the console script of the installed copy in the user's folder."""
    command = [sys.executable, str(installed / "bin" / "resnet-compress"), *words]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_what_users_need(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/rivals/"))]
    for name in ("benchmarks/reporting/report.html", "benchmarks/results/result.schema.json", "compress/py.typed"):
        assert name in names
    assert "compress/targets/ort-x86.toml" in names


def test_folders_of_the_users_are_in_nobodys_way(installed: Path, work: Path) -> None:
    told = program(installed, work, "--version")
    assert told.returncode == 0, told.stderr
    where = "import benchmarks; print(benchmarks.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    found = subprocess.run(
        [sys.executable, "-P", "-c", where], cwd=work, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).is_relative_to(installed)
    effort = ("--duration", "0.05", "--warmup", "0.01", "--iterations", "4", "--processes", "1")
    measured = program(installed, work, "latency", "relu.onnx", *effort, "--json", "out.json")
    assert measured.returncode in (0, 4), measured.stderr  # 4: this machine is not quiet
    assert json.loads((work / "out.json").read_text())[0]["kind"] == "latency"


def test_a_users_own_network_is_imported_from_their_folder(installed: Path, work: Path) -> None:
    nets = (
        "from torchvision.models import resnet18 as tv",
        "def net(num_classes):",
        "    return tv(num_classes=num_classes)",
    )
    (work / "onnx_nets.py").write_text("\n".join(nets))
    settings = ("model.arch=onnx_nets:net", "train.epochs=0", "run.dir=run", "data.kind=digits")
    words = [part for one in settings for part in ("--set", one)]
    done = program(installed, work, "baseline", *words)
    assert done.returncode == 0, done.stderr
    assert (work / "run" / "baseline" / "model.json").exists()
