"""How this machine's engines add INT8 products, asked of them; and that they add no pair that we do not know of."""

from __future__ import annotations

import itertools
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from compress.engines.base import OpenOptions, backend, infer
from compress.engines.saturation import convolution, pair_sums, probe, read_probe
from compress.errors import BackendAbsent
from compress.quantize.pairs import pairs
from compress.registries import BACKENDS

ENGINES = ["onnxruntime", "openvino"]
BOTH = 2 * 127 * 255


def test_the_engines_of_a_processor_answer_and_others_do_not() -> None:
    assert {pair_sums(engine) for engine in ENGINES} <= {"int32", "int16"}
    assert pair_sums("tensorrt") is None


def test_an_engine_that_is_not_here_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pair_sums.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendAbsent, match="OpenVINO is not installed"):
        pair_sums("openvino")


def test_what_the_probe_says_and_what_it_cannot_say() -> None:
    assert (read_probe(1.0), read_probe(32767 / BOTH)) == ("int32", "int16")
    assert read_probe(0.0) is None
    onnx.checker.check_model(onnx.load_from_string(probe()), full_check=True)


def two_weights_each(shape: tuple[int, int, int]) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """An output channel for every two weights of a kernel: these at 127, the others 0."""
    size = int(np.prod(shape))
    chosen = list(itertools.combinations(range(size), 2))
    weights = np.zeros((len(chosen), size), np.int8)
    for channel, two in enumerate(chosen):
        weights[channel, two] = 127
    return weights.reshape(-1, *shape), chosen


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("shape", [(1, 3, 3), (3, 3, 3), (4, 1, 1), (5, 1, 2), (8, 1, 1), (4, 2, 2)], ids=str)
def test_no_engine_here_adds_pairs_that_we_do_not_know_of(
    engine: str, groups: int, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    weights, chosen = two_weights_each(shape)
    path = tmp_path / f"two{BACKENDS['onnxruntime'].suffix}"
    path.write_bytes(convolution(np.tile(weights, (groups, 1, 1, 1)), largest=BOTH, groups=groups))
    image = np.full((1, shape[0] * groups, 8, 8), 255.0, np.float32)
    with backend(engine).open_engine(path, OpenOptions()) as opened:
        sums = infer(opened, image)[0].reshape(groups, len(chosen), -1).min((0, 2))
    clipped = {two for two, total in zip(chosen, sums, strict=True) if total < 0.9 * BOTH}
    assert clipped <= {tuple(sorted(pair)) for found in pairs(shape) for pair in found.tolist()}
    if shape[0] % 2 == 0:  # else it depends on the engine whether a channel has a neighbour
        assert bool(clipped) == (pair_sums(engine) == "int16")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="no x86")
@pytest.mark.parametrize("kernels", ["AVX2", "AVX512_CORE"])
def test_openvino_adds_no_others_without_vnni_either(kernels: str) -> None:
    """Its kernels for other processors run on this one, too, where it has their instructions."""
    without = {**os.environ, "ONEDNN_MAX_CPU_ISA": kernels}
    ask = "from compress.engines.saturation import pair_sums; print(pair_sums('openvino'))"
    assert subprocess.run([sys.executable, "-c", ask], env=without, capture_output=True, text=True).stdout == "int16\n"
    own = [__file__, "-k", "no_engine_here and openvino", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([sys.executable, "-m", "pytest", *own], env=without, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_pairs_of_an_even_number_of_channels_are_the_same_in_every_order() -> None:
    for shape in ((2, 3, 3), (64, 1, 1), (6, 1, 3), (10,)):
        (found,) = pairs(shape)
        assert sorted(found.ravel().tolist()) == list(range(int(np.prod(shape))))
