from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.timing.reference import PACE, SHAPES, ReferenceNetwork, peaks, reference_networks
from benchmarks.timing.run import measure
from benchmarks.timing.worker import Settings
from compress.engines.base import open_engine

QUICK = Settings(warmup_s=0.02, warmup_runs=2, duration_s=0.2, iterations=4, turns=2, processes=1)


@pytest.mark.parametrize("target", ["ort-x86", "ort-arm"])
def test_integer_networks_are_integer_and_give_no_constant(target: str) -> None:
    with reference_networks(target) as known:
        assert len(known) == sum(map(len, SHAPES.values())) + 1
        for one in known:
            operators = {node.op_type for node in onnx.load(one.path).graph.node}
            assert ("QLinearConv" in operators) == (one.precision == "int8")
            assert "Conv" not in operators or one.precision == "fp32"
            with open_engine(one.path) as engine:
                x = np.random.default_rng(0).standard_normal((1, *engine.inputs[0].shape[1:])).astype(np.float32)
                (output,) = engine.run({"input": x}).values()
            assert len(np.unique(output)) > 50
    assert known[0].macs == 2 * 28 * 28 * 256 * 256 * 9
    assert [one.throughout for one in known] == [False] * 3 + [True]
    assert known[-1].macs == 9 * sum(
        a * b * side**2 for (a, b, _), side in zip(PACE, (28, 14, 14, 7, 7, 4, 4), strict=True)
    )


def test_peak_is_the_fastest_network_of_a_precision() -> None:
    with reference_networks() as known:
        macs = [one.macs for one in known]
        found = peaks(zip(known, [1.0, 0.5, 4.0, 100.0], strict=True))
    assert found == {"int8": max(macs[0] / 1e6, 2 * macs[1] / 1e6), "fp32": macs[2] / 4e6}


def test_an_engine_is_held_against_the_peak_of_its_precision(int8_onnx: Path, float_onnx: Path) -> None:
    """Of the tiny network as its own reference, on one image, so that it reaches about all of the peak."""
    for path, precision in ((int8_onnx, "int8"), (float_onnx, "fp32")):
        with open_engine(path) as engine:
            assert engine.metadata is not None
            macs = engine.metadata.macs
        (result,) = measure([path], QUICK, references=[ReferenceNetwork(path, precision, macs)])  # type: ignore[arg-type]
        assert result.work is not None
        assert result.work.peak_gmacs_per_s is not None
        assert 0.2 < result.work.gmacs_per_s / result.work.peak_gmacs_per_s < 5
        (other,) = measure([path], QUICK, references=[ReferenceNetwork(path, "fp16", macs)])  # type: ignore[arg-type]
        assert other.work is not None
        assert other.work.peak_gmacs_per_s is None


def test_a_reference_network_that_fails_leaves_the_peak_unknown(int8_onnx: Path, tmp_path: Path) -> None:
    (result,) = measure([int8_onnx], QUICK, references=[ReferenceNetwork(tmp_path / "gone.onnx", "int8", 1)])
    assert result.work is not None
    assert result.work.peak_gmacs_per_s is None
    assert result.scenario.failed == {}
