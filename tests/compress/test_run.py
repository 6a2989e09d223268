import errno
import fcntl
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from subprocess import PIPE

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import PipelineError
from compress.files import write_atomic
from compress.progress import Terminal
from compress.run import Run


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
    record = json.loads((folder / "stage.json").read_text())
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
    folder.rename(folder.with_name(".prune.0123456789abcdef.old"))
    folder.with_name(".prune.fedcba9876543210").mkdir()
    assert run.need("prune") == folder
    assert (folder / "result.txt").exists()
    assert [path.name for path in run.directory.iterdir()] == ["prune"]


SLOW = """
import sys, time
from pathlib import Path
from compress.run import Run
from compress.progress import Terminal

def work(out, scratch):
    (Path(sys.argv[1]) / "log").open("a").write("begin\\n")
    print("begun", flush=True)
    sys.stdin.readline()
    (out / "result.txt").write_text("result")
    (Path(sys.argv[1]) / "log").open("a").write("end\\n")

Run(Path(sys.argv[1]) / "run", progress=Terminal()).stage("prune", work, settings={})
"""


def start(folder: Path) -> subprocess.Popen[str]:
    """A process that makes stage ``prune``, once it is told to go on by a line."""
    command = [sys.executable, "-c", SLOW, str(folder)]
    return subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)


def test_a_second_process_waits_and_finds_the_output(tmp_path: Path) -> None:
    with start(tmp_path) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "begun\n"
        with start(tmp_path) as second:
            assert second.stderr is not None
            waiting = second.stderr.readline()
            assert f"process {first.pid}" in waiting
            assert "waiting until it ends" in waiting
            first.communicate("go\n")
            _, said = second.communicate("go\n")
    assert "up to date" in said
    assert (tmp_path / "log").read_text() == "begin\nend\n"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["prune"]


def test_a_killed_process_leaves_no_lock_behind(tmp_path: Path) -> None:
    with start(tmp_path) as first:
        assert first.stdout is not None
        first.stdout.readline()
        first.kill()
    work, run = Counting(), Run(tmp_path / "run")
    run.stage("prune", work, settings={})
    assert work.runs == 1
    assert [path.name for path in run.directory.iterdir()] == ["prune"]


def test_an_output_that_is_taken_away_while_the_stage_runs_is_no_output(tmp_path: Path) -> None:
    def work(out: Path, scratch: Path) -> None:
        write_atomic(out / "a", "one")
        write_atomic(out / "b", "two")
        (out / "a").unlink()  # by another program

    with pytest.raises(PipelineError, match="a was written, and is gone"):
        Run(tmp_path / "run").stage("prune", work, settings={})
    assert not list((tmp_path / "run").iterdir())


def test_a_parent_that_changes_while_the_stage_runs_is_an_error(tmp_path: Path) -> None:
    parent = tmp_path / "weights"
    parent.write_text("a")
    with pytest.raises(PipelineError, match="weights has changed"):
        Run(tmp_path / "run").stage(
            "prune", lambda out, _: parent.write_text("b") and None, settings={}, parents=[parent]
        )


@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), name=st.sampled_from(["a.bin", "deep/b.bin"]))
@settings(max_examples=50, deadline=None)
def test_a_flipped_bit_anywhere_in_an_output_is_found_when_it_is_read(place: float, flip: int, name: str) -> None:
    def work(out: Path, scratch: Path) -> None:
        write_atomic(out / "a.bin", bytes(range(200)))
        write_atomic(out / "deep" / "b.bin", bytes(100))

    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run")
        path = run.stage("baseline", work, settings={}) / name
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= flip
        path.write_bytes(content)
        with pytest.raises(PipelineError, match=rf"{name} is not what stage 'baseline' has written(.|\n)*--force"):
            run.need("baseline")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"outputs": {}}'])
def test_a_damaged_manifest_is_named_and_the_stage_is_made_again(tmp_path: Path, content: str) -> None:
    work, run = Counting(), Run(tmp_path / "run")
    manifest = run.stage("prune", work, settings={}) / "stage.json"
    manifest.write_text(content)  # as after a power cut
    with pytest.raises(PipelineError, match=r"stage\.json is (damaged|not JSON)"):
        run.need("prune")
    run.stage("prune", work, settings={})
    assert work.runs == 2


def test_on_a_disk_that_cannot_be_written_an_output_is_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, run = Counting(), Run(tmp_path / "run")
    run.stage("prune", work, settings={})

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    run.stage("prune", work, settings={})
    assert work.runs == 1


def test_what_other_settings_left_half_done_goes_with_the_stage(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")

    def fail(out: Path, scratch: Path) -> None:
        (scratch / "half").write_text("")
        raise RuntimeError("stopped")

    for value in (1, 2):
        with pytest.raises(RuntimeError):
            run.stage("prune", fail, settings={"v": value})
    with pytest.raises(RuntimeError):
        run.stage("finetune", fail, settings={})
    run.stage("prune", Counting(), settings={"v": 3})
    assert [path.name.partition("-")[0] for path in (run.directory / ".scratch").iterdir()] == ["finetune"]


def test_where_the_disk_knows_no_locks_it_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    work = Counting()
    Run(tmp_path / "run", progress=Terminal()).stage("prune", work, settings={})
    assert work.runs == 1
    assert "a disk without file locks (No locks available)" in capsys.readouterr().err
