"""A kit of plans: compiled where it is made, whole or not at all; and what its script says on the device."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from benchmarks import latency_table
from benchmarks.profiling import guest, kit, measure
from benchmarks.profiling.kit import Effort, Timed
from benchmarks.profiling.survey import Survey
from calibration.preprocess import Preprocess
from compress.config import TargetConfig
from compress.errors import BackendAbsent, ConfigError, EngineError
from compress.models.model import Model, save_model
from compress.models.registry import build
from compress.progress import Silent
from compress.prune.latency.table import LatencyTable
from compress.registries import BACKENDS
from compress.run import Run

pytestmark = pytest.mark.usefixtures("rtx")
ARCH = "tiny_resnet:TinyResNet"
PREPROCESS = Preprocess(size=8)
TARGET = TargetConfig.model_validate({"engine": "tensorrt-rtx", "tensorrt_rtx": {"capabilities": ["8.6", "8.9"]}})
T = TypeVar("T")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")

    def work(out: Path, scratch: Path) -> None:
        torch.manual_seed(0)
        save_model(Model(build(ARCH, 3).eval(), ARCH, PREPROCESS, ("a", "b", "c")), out)

    Run(folder).stage("baseline", work, settings={})
    return folder


@pytest.fixture(scope="module")
def survey(rtx: None) -> Survey:
    torch.manual_seed(0)
    return Survey(build(ARCH, 3).eval(), PREPROCESS, TARGET)


def command(folder: Path, *more: str) -> int:
    settings = ("target.engine=tensorrt-rtx", 'target.tensorrt_rtx.capabilities=["8.6", "8.9"]', f"model.arch={ARCH}")
    sets = [word for setting in settings for word in ("--set", setting)]
    return latency_table.main(["--run", str(folder), *sets, "--fast", *more])


@pytest.fixture(scope="module")
def folder(rtx: None, run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit."""
    folder = tmp_path_factory.mktemp("kits") / "kit"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "FITTED", 4)
        patch.setattr(measure, "HELD_OUT", 2)
        assert command(run_folder, "--emit-kit", str(folder)) == 0
    return folder


def test_a_kit_holds_plans_and_says_what_they_need(folder: Path) -> None:
    manifest = kit.read_manifest(folder)
    assert {file.name for file in folder.iterdir()} == {
        kit.SCRIPT,
        kit.DESCRIBED,
        kit.README,
        *(f"{name}.plan" for name in manifest.files),
    }
    magic = BACKENDS["tensorrt-rtx"].magic
    assert all(file.read_bytes().startswith(magic) for file in folder.glob("*.plan"))
    assert manifest.built is not None
    assert manifest.built.capabilities == ("8.6", "8.9")
    readme = (folder / kit.README).read_text()
    assert f"compute capability 8.6, 8.9, with version {manifest.built.version} of TensorRT for RTX" in readme
    assert "pip install" in readme


def test_its_results_become_a_table(folder: Path, run_folder: Path, tmp_path: Path) -> None:
    measured = tmp_path / "kit"
    shutil.copytree(folder, measured)
    manifest = kit.read_manifest(measured)
    place = kit.Ran("1.7.1.116", "NVIDIA GeForce RTX 3060", "x86_64", "")
    rows = [Timed(name, ((1.0, 1.1),) * 2, ((0.5, 0.6),) * 2, place) for name in manifest.files[1:]]
    lines = [json.dumps({**vars(row), "place": vars(place)}) for row in rows]
    (measured / kit.RESULTS).write_text("\n".join(lines))
    assert command(run_folder, "--import-kit", str(measured), "--table", str(tmp_path / "table.json")) == 0
    table = LatencyTable.read(tmp_path / "table.json")
    assert (table.place.engine, table.place.device) == ("tensorrt-rtx", place.device)
    assert table.imported


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_its_script_ends_with_one_line_where_there_is_no_gpu(folder: Path, tmp_path: Path) -> None:
    script = [sys.executable, "-I", str(folder / kit.SCRIPT)]  # without this repository
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "CUDA" in done.stderr
    assert not (folder / kit.RESULTS).exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, EngineError])
def test_nothing_is_left_of_a_kit_that_was_not_finished(
    survey: Survey, tmp_path: Path, error: type[BaseException]
) -> None:
    class Stopping(Silent):
        def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
            assert what == "building plans"
            for done, item in enumerate(items):
                if done == 3:
                    raise error("stopped")
                yield item

    with pytest.raises(error):
        measure.emit_kits({"": survey}, TARGET, tmp_path / "kit", Effort(), Stopping())
    assert not list(tmp_path.iterdir())


def test_a_kit_is_not_begun_without_what_compiles_it(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    assert command(run_folder, "--emit-kit", str(tmp_path / "kit")) == BackendAbsent.exit_code
    assert "missing the Python package 'tensorrt_rtx_bindings'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_kit_stays(run_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "kit"
    path.write_text("mine")
    assert command(run_folder, "--emit-kit", str(path)) == ConfigError.exit_code
    assert path.read_text() == "mine"


class Device:
    """An engine of version 1.7.1.116 on a GPU of compute capability 8.6."""

    version, device = "1.7.1.116", "NVIDIA GeForce RTX 3060"

    def __init__(self, threads: int) -> None:
        self.cuda = self

    def capability(self) -> str:
        return "8.6"


@pytest.mark.parametrize(
    ("version", "capabilities", "said"),
    [
        ("1.7.0.10", ["8.6"], r"^the plans are of version 1\.7\.0\.10, .* this is 1\.7\.1\.116$"),
        ("1.7.1.116", ["8.9", "12.0"], r"^the plans run on GPUs of compute capability 8\.9, 12\.0; .* has 8\.6$"),
    ],
)
def test_the_script_refuses_another_version_and_another_gpu(
    version: str, capabilities: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(guest.ENGINES, "tensorrt-rtx", Device)
    manifest = {"engine": "tensorrt-rtx", "threads": 1, "built": {"version": version, "capabilities": capabilities}}
    with pytest.raises(SystemExit, match=said):
        guest.opened(manifest)
    manifest["built"] = {"version": "1.7.1.116", "capabilities": ["8.6"]}
    assert isinstance(guest.opened(manifest), Device)


def test_the_script_says_that_the_engine_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match=r"^tensorrt-rtx cannot be imported .* README\.txt says what to install"):
        guest.opened({"engine": "tensorrt-rtx", "threads": 1})
