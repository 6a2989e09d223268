"""The pipeline, from the dense network to the engine, against the baseline committed beside this file.

One test a quantity, so that a JUnit report names what has become worse. To gate your own network, copy this file beside
your own ``baseline.json``; examples/github-actions/accuracy.yml says how to make that.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.evaluation.baseline import Baseline, Check
from benchmarks.evaluation.regression import check
from compress.run import Run

BASELINE = Path(__file__).with_name("baseline.json")
KNOWN = Baseline.read(BASELINE)

pytestmark = [pytest.mark.accuracy, pytest.mark.timeout(3600)]  # the first test waits for the pipeline


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Check]:
    """Every quantity by name; ``ACCURACY_RUN`` names a folder whose finished stages are taken as they are."""
    run = Run(Path(os.environ.get("ACCURACY_RUN") or tmp_path_factory.mktemp("run")))
    return {one.name: one for one in check(BASELINE, KNOWN.source.load(), run)}


@pytest.mark.parametrize("quantity", list(KNOWN.quantities))
def test_quantity_is_within_its_tolerance(quantity: str, checks: dict[str, Check]) -> None:
    assert checks[quantity].passed, str(checks[quantity])
