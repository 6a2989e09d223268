import os
import subprocess
from pathlib import Path

import pytest

from compress.errors import PipelineError
from compress.run import Run, read_json, write_atomic


class Counting:
    """Stage work that counts how often it really ran."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, out: Path, scratch: Path) -> None:
        self.runs += 1
        (out / "result.txt").write_text("result")


def test_asking_twice_works_once(tmp_path: Path) -> None:
    work = Counting()
    run = Run(tmp_path / "run")
    first = run.stage("prune", work, settings={"macs": "50%"})
    again = run.stage("prune", work, settings={"macs": "50%"})
    assert (first, work.runs) == (again, 1)
    assert (first / "result.txt").read_text() == "result"


def test_other_settings_or_other_parents_work_again(tmp_path: Path) -> None:
    work = Counting()
    run = Run(tmp_path / "run")
    parent = tmp_path / "weights"
    parent.write_text("a")
    run.stage("prune", work, settings={"macs": "50%"}, parents=[parent])
    run.stage("prune", work, settings={"macs": "40%"}, parents=[parent])
    parent.write_text("b")
    run.stage("prune", work, settings={"macs": "40%"}, parents=[parent])
    assert work.runs == 3


def test_a_skipped_stage_is_newer_than_its_parent_for_make(tmp_path: Path) -> None:
    work = Counting()
    run = Run(tmp_path / "run")
    manifest = run.stage("prune", work, settings={}) / "stage.json"
    os.utime(manifest, (0, 0))
    run.stage("prune", work, settings={})
    assert manifest.stat().st_mtime > 0


def test_force_works_again(tmp_path: Path) -> None:
    work = Counting()
    Run(tmp_path / "run").stage("prune", work, settings={})
    Run(tmp_path / "run", force=True).stage("prune", work, settings={})
    assert work.runs == 2


def test_a_failure_leaves_the_old_output_and_nothing_partial(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    folder = run.stage("prune", Counting(), settings={"v": 1})

    def fail(out: Path, scratch: Path) -> None:
        (out / "result.txt").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        run.stage("prune", fail, settings={"v": 2})
    assert (folder / "result.txt").read_text() == "result"
    assert [path.name for path in run.directory.iterdir()] == ["prune"]


def test_scratch_survives_a_failure_and_goes_when_the_stage_is_done(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")

    def two_tries(out: Path, scratch: Path) -> None:
        if not (scratch / "half").exists():
            (scratch / "half").write_text("")
            raise RuntimeError("killed")
        (out / "whole").write_text("")

    with pytest.raises(RuntimeError):
        run.stage("finetune", two_tries, settings={})
    assert (run.stage("finetune", two_tries, settings={}) / "whole").exists()
    assert [path.name for path in run.directory.iterdir()] == ["finetune"]


def test_a_stage_that_has_not_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"'baseline' has not run(.|\n)*compress baseline"):
        Run(tmp_path).need("baseline")


def test_the_manifest_names_settings_parents_versions_and_outputs(tmp_path: Path) -> None:
    parent = tmp_path / "weights"
    parent.write_text("a")
    folder = Run(tmp_path / "run").stage("prune", Counting(), settings={"macs": "50%"}, parents=[parent])
    record = read_json(folder / "stage.json")
    assert record["settings"] == {"macs": "50%"}
    assert list(record["parents"]) == [str(parent)]
    assert {"torch", "onnxruntime"} <= record["versions"].keys()
    assert list(record["outputs"]) == ["result.txt"]


def test_an_atomic_write_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_atomic(tmp_path / "x", 3)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_lost_or_damaged_output_is_made_again(tmp_path: Path) -> None:
    work, run = Counting(), Run(tmp_path / "run")
    folder = run.stage("prune", work, settings={})
    (folder / "result.txt").unlink()
    run.stage("prune", work, settings={})
    (folder / "result.txt").write_text("damaged")
    run.stage("prune", work, settings={})
    assert work.runs == 3
    assert (folder / "result.txt").read_text() == "result"


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    work, run = Counting(), Run(tmp_path / "run")
    folder = run.stage("prune", work, settings={})
    folder.rename(folder.with_name(".prune.old"))
    dead = subprocess.Popen(["true"])
    dead.wait()
    folder.with_name(f".prune.{dead.pid}").mkdir()
    assert run.need("prune") == folder
    assert (folder / "result.txt").exists()
    assert [path.name for path in run.directory.iterdir()] == ["prune"]
