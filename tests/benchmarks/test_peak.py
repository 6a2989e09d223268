from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest

from benchmarks.peak import SHAPES, gmacs, peaks, write_yardsticks
from benchmarks.timing import measure
from benchmarks.worker import Settings
from compress.engines.base import open_engine

QUICK = Settings(warmup_s=0.02, warmup_runs=2, duration_s=0.2, iterations=4, rounds=2, processes=1)


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_integer_yardsticks_are_integer_and_give_no_constant(
    tmp_path: Path, activations: Literal["uint8", "int8"]
) -> None:
    for one in write_yardsticks(tmp_path, activations):
        operators = {node.op_type for node in onnx.load(one.path).graph.node}
        assert ("QLinearConv" in operators) == (one.precision == "int8")
        assert "Conv" not in operators or one.precision == "fp32"
        with open_engine(one.path) as engine:
            x = np.random.default_rng(0).standard_normal((1, *engine.inputs[0].shape[1:])).astype(np.float32)
            (output,) = engine.run({"input": x}).values()
        assert len(np.unique(output)) > 50


def test_peak_is_the_fastest_yardstick_of_a_precision(tmp_path: Path) -> None:
    yardsticks = write_yardsticks(tmp_path, "uint8")
    results = measure([yardsticks[0].path], QUICK, yardsticks=[one.path for one in yardsticks])
    assert len(results) == 1 + len(yardsticks) == 1 + sum(map(len, SHAPES.values()))
    rates = [gmacs(one.macs, result) for one, result in zip(yardsticks, results[1:], strict=True)]
    assert peaks(yardsticks, results[1:]) == {"int8": max(rates[:2]), "fp32": rates[2]}
    assert yardsticks[0].macs == 2 * 28 * 28 * 256 * 256 * 9
