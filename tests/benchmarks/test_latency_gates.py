"""``benchmarks.latency``: gates within one run, and files that are kept or refused, with scripted engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from scripted import open_scripted

from benchmarks.latency import main
from benchmarks.results.base import Bounds, Verdict
from benchmarks.results.latency import LatencyResult, load_latency
from benchmarks.results.schema import json_schema
from benchmarks.results.tables import require_writable
from benchmarks.timing import reference, run
from compress.engines import examine
from compress.errors import ConfigError

EFFORT = ["--warmup", "0.01", "--duration", "0.02", "--processes", "2"]
measure = run.measure


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command opens scripts instead of engine files, and no reference networks."""
    monkeypatch.setattr(run, "measure", partial(measure, opener=open_scripted))
    monkeypatch.setattr(reference, "reference_networks", lambda: nullcontext(()))
    monkeypatch.setattr(examine, "examine", lambda path: None)


@pytest.fixture
def engines(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{name}.script" for name in ("old", "new")]
    for path in paths:
        path.write_text("sleep 1")
    return list(map(str, paths))


def told(monkeypatch: pytest.MonkeyPatch, ratio: Bounds, status: str = "VALID") -> None:
    """Let every measurement be of that status and come to that ratio, whatever this machine was doing."""

    def edited(one: LatencyResult) -> LatencyResult:
        comparison = one.comparison and one.comparison.model_copy(update={"ratio": ratio})
        verdict = Verdict(status=status, reasons=["the outputs hold NaN"] * (status == "INVALID"))  # type: ignore[arg-type]
        return one.model_copy(update={"comparison": comparison, "verdict": verdict})

    def measured(*given: Any, **named: Any) -> list[LatencyResult]:
        return list(map(edited, measure(*given, opener=open_scripted, **named)))

    monkeypatch.setattr(run, "measure", measured)


@pytest.mark.parametrize(
    ("ratio", "status", "code", "says"),
    [
        ((1.0, 0.98, 1.04), "VALID", 0, "PASS: new.script over old.script: median ratio 1.000"),
        ((1.04, 1.01, 1.06), "VALID", 0, "UNDECIDED: new.script over old.script: median ratio 1.040"),
        ((1.2, 1.1, 1.3), "VALID", 3, "REGRESSION: new.script over old.script: median ratio 1.200"),
        ((1.2, 1.1, 1.3), "INVALID", 4, "new.script over old.script: median is not decided"),
    ],
)
def test_the_second_engine_is_held_against_the_first(
    engines: list[str],
    ratio: Sequence[float],
    status: str,
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told(monkeypatch, Bounds(value=ratio[0], lo=ratio[1], hi=ratio[2]), status)
    out, page = tmp_path / "now.json", tmp_path / "now.md"
    command = [
        *engines,
        *EFFORT,
        "--iterations",
        "8",
        "--fail-on",
        "median:5%",
        "--json",
        str(out),
        "--markdown",
        str(page),
    ]
    assert main(command) == code
    assert says in capsys.readouterr().out
    assert says in page.read_text()
    records = json.loads(out.read_text())
    jsonschema.validate(records[1], json_schema())
    assert records[0]["comparison"] is None
    (gate,) = records[1]["comparison"]["gates"]
    assert (gate["metric"], gate["limit"], gate["ratio"]["lo"]) == ("median", 0.05, ratio[1])


def test_a_limit_of_a_percentile_gets_the_samples_that_it_needs(engines: list[str], tmp_path: Path) -> None:
    out = tmp_path / "now.json"
    main([*engines, *EFFORT, "--iterations", "8", "--fail-on", "p95:500%", "--json", str(out)])
    _, new = load_latency(out)
    assert new.comparison is not None
    assert [gate.metric for gate in new.comparison.gates] == ["p95"]
    assert new.stats["latency_ms"].n >= 130


def test_a_limit_that_cannot_be_decided_leaves_what_was_measured(
    engines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = partial(measure, opener=open_scripted)
    monkeypatch.setattr(run, "measure", lambda paths, settings, **named: few(paths, _short(settings), **named))
    out = tmp_path / "now.json"
    assert main([*engines, *EFFORT, "--iterations", "8", "--fail-on", "p99:5%", "--json", str(out)]) == 2
    assert "are too few for p99:5%: 662 are needed" in capsys.readouterr().err
    assert len(load_latency(out)) == 2


def _short(settings: Any) -> Any:
    return type(settings)(**{**vars(settings), "iterations": 8, "limit_s": 0.1})


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--fail-on", "median:5%"], "needs something to compare the engine with"),
        (["--baseline", "gone.json"], "gone.json"),
        (["--json", "file/now.json"], "cannot be written"),
        (["--csv", "folder"], "is a folder"),
        (["--markdown", "/proc/now.md"], "cannot be written"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_measured(
    words: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    Path("counted.script").write_text("count")
    assert main(["counted.script", *EFFORT, *words]) in (1, 2)
    assert says in capsys.readouterr().err
    assert not Path("counted.opened").exists()


def test_outputs_that_can_be_written_are_left_as_they_are(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text("kept")
    for target in (old, tmp_path / "new" / "folder" / "now.json", Path("-")):
        require_writable(str(target))
    assert old.read_text() == "kept"
    assert [path.name for path in (tmp_path / "new").rglob("*")] == ["folder"]
    with pytest.raises(ConfigError, match="is a folder"):
        require_writable(str(tmp_path))


def test_a_measurement_that_is_killed_leaves_what_it_had(
    engines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*given: Any, on_process: Callable[[Sequence[LatencyResult]], None], **named: Any) -> None:
        def kept(so_far: Sequence[LatencyResult]) -> None:
            on_process(so_far)
            raise Killed

        measure(*given, opener=open_scripted, on_process=kept, **named)

    monkeypatch.setattr(run, "measure", killed)
    out = tmp_path / "now.json"
    with pytest.raises(Killed):
        main([*engines, "--fast", "--processes", "3", "--duration", "0.02", "--json", str(out)])
    for one in load_latency(out):
        assert one.verdict.status == "INVALID"
        assert one.verdict.reasons[0].endswith("2 of 3 processes")
