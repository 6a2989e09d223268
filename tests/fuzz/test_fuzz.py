"""Spoilt files of every kind: each is read and used, or refused by an error that names it. See ``python tests/fuzz``.

``FUZZ_CASES`` sets how many cases there are in all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent


def fuzz(out: Path, cases: int, *more: str) -> None:
    """Fails with the cases that went wrong, and the command that runs one again."""
    command = [
        sys.executable,
        str(FUZZ),
        "--cases",
        os.environ.get("FUZZ_CASES", str(cases)),
        "--json",
        str(out),
        *more,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FUZZ.parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    again = "run one again: python tests/fuzz --kind NAME --case N"
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}\n{again}"


def test_five_hundred_spoilt_files_are_used_or_refused(tmp_path: Path) -> None:
    fuzz(tmp_path / "results.json", 500)
    results = json.loads((tmp_path / "results.json").read_text())
    refused = [name for name, cases in results.items() if cases[0][1] != "accepted"]
    assert refused == [".plan"]  # the corpus itself is whole; there is no TensorRT here
    never = [
        name for name, cases in results.items() if len(cases) > 12 and "refused" not in {case[1] for case in cases}
    ]
    assert never == ["training.pt"]  # a training then starts over


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_spoilt_files_are_used_or_refused(tmp_path: Path) -> None:
    fuzz(tmp_path / "results.json", 10_000, "--slow")
