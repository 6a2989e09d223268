"""The workflow for users, held against the commands and files that it names; GitHub itself is not asked."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from benchmarks import regression
from benchmarks.evaluation.baseline import Baseline, Source

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "examples" / "github-actions" / "accuracy.yml").read_text()
WORKFLOW: dict[Any, Any] = yaml.safe_load(TEXT)
[JOB] = WORKFLOW["jobs"].values()
COMMANDS = [shlex.split(line) for step in JOB["steps"] for line in step.get("run", "").splitlines()]


def test_the_workflow_is_what_github_reads() -> None:
    assert {"pull_request", "workflow_dispatch"} == WORKFLOW[True].keys()  # YAML 1.1 reads the key "on" as true
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert JOB["runs-on"]
    for step in JOB["steps"]:
        assert ("uses" in step) != ("run" in step)
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "actions/checkout@v4"))


def test_pip_is_cached_and_a_failure_still_uploads_the_report() -> None:
    uses = {step["uses"].partition("@")[0]: step for step in JOB["steps"] if "uses" in step}
    assert uses["actions/setup-python"]["with"]["cache"] == "pip"
    upload = uses["actions/upload-artifact"]
    assert upload["if"] == "always()"
    [pytest_command] = [words for words in COMMANDS if "pytest" in words[:3]]
    [report] = [word.partition("=")[2] for word in pytest_command if word.startswith("--junitxml=")]
    assert report in upload["with"]["path"].split()


def test_its_commands_are_ones_that_the_program_takes() -> None:
    told = [shlex.split(line) for line in re.findall(r"#\s+(python -m benchmarks\.regression .*)", TEXT)]
    ours = [words[3:] for words in (*COMMANDS, *told) if words[1:3] == ["-m", "benchmarks.regression"]]
    assert len(ours) == 2
    for words in ours:
        upto = words.index("|") if "|" in words else len(words)
        _, bound, _ = regression.app.parse_args(words[:upto], exit_on_error=False)
        assert bound.arguments["baseline"]


def test_the_settings_that_it_advises_are_settings() -> None:
    advised = re.findall(r"prune\.\w+(?: = \w+)?", TEXT)
    assert set(advised) == {"prune.table", "prune.allow_foreign_table = true", "prune.confirm = false"}
    known = Baseline.read(ROOT / "tests" / "regression" / "baseline.json").source
    assert {override.partition("=")[0] for override in known.overrides} == {word.split()[0] for word in advised}
    Source(overrides=tuple(word.replace(" ", "") for word in advised if "=" in word)).load()


@pytest.mark.accuracy
def test_the_gate_file_can_be_copied_beside_another_baseline(tmp_path: Path) -> None:
    """In JUnit, one case a quantity; a network that is not there is an error in every one of them."""
    for name in ("baseline.json", "dense_fp32.npz", "int8.npz", "test_accuracy_gate.py"):
        (tmp_path / name).write_bytes((ROOT / "tests" / "regression" / name).read_bytes())
    known = Baseline.read(tmp_path / "baseline.json")
    changed = known.source.changed(None, ["model.weights=nowhere.pth", "prune.latency=50%"])
    known.model_copy(update={"source": changed}).write(tmp_path / "baseline.json")
    options = ["-m", "accuracy", "-c", "/dev/null", "-p", "no:cacheprovider", "-q", f"--junitxml={tmp_path / 'r.xml'}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(tmp_path / "test_accuracy_gate.py"), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "nowhere.pth" in done.stdout
    cases = ElementTree.parse(tmp_path / "r.xml").findall(".//testcase")
    assert len(cases) == len(known.quantities)


@pytest.mark.parametrize("quantity", Baseline.read(ROOT / "tests" / "regression" / "baseline.json").quantities.values())
def test_every_tolerance_has_a_reason(quantity) -> None:  # type: ignore[no-untyped-def]
    assert len(quantity.why.split()) >= 5
