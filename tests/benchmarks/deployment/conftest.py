"""Networks of every sort that a folder is made for, and the tools that compile its C++."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.preprocess import Preprocess
from compress.engines.metadata import Metadata

Maker = Callable[..., Path]
METADATA = Metadata("tiny", "fp32", Preprocess(size=8), ("cat", "dog", "fox"), 1, 1, "", "0.1.0")


@pytest.fixture
def network(tmp_path: Path) -> Maker:
    """Makes an ONNX file that averages each channel of its input and multiplies the averages by some weights."""

    def make(
        preprocess: Preprocess = METADATA.preprocess,
        classes: tuple[str, ...] = METADATA.classes,
        *,
        outputs: int = 3,
        end: str = "",
        features: bool = False,
        batch: int | str = "batch",
        name: str = "tiny",
        **about: str,
    ) -> Path:
        weights = 3 * np.random.default_rng(0).standard_normal((preprocess.channels, outputs)).astype(np.float32)
        nodes = [
            helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["product" if end else "y"]),
        ]
        if end:
            nodes.append(helper.make_node(end, ["product"], ["y"]))
        found = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, outputs])]
        if features:
            nodes.append(helper.make_node("Relu", ["x"], ["map"]))
            found.append(helper.make_tensor_value_info("map", TensorProto.FLOAT, [batch, *preprocess.shape]))
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *preprocess.shape])],
            found,
            [numpy_helper.from_array(weights, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        metadata = replace(METADATA, preprocess=preprocess, classes=classes, **about)
        helper.set_model_props(model, metadata.to_props())
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path)
        return path

    return make


@pytest.fixture(scope="session")
def build() -> Callable[[Path], Path]:
    """Builds the C++ program of a folder, as its README says; returns the program."""
    for tool, why in (("cmake", "CMake is not installed"), ("c++", "there is no C++ compiler")):
        if shutil.which(tool) is None:
            pytest.skip(why)

    def run(folder: Path) -> Path:
        out = folder / "cpp" / "build"
        python = f"-DPython3_EXECUTABLE={sys.executable}"
        for words in (["-S", str(folder / "cpp"), "-B", str(out), python], ["--build", str(out)]):
            done = subprocess.run(["cmake", *words], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
        return out / "predict"

    return run
