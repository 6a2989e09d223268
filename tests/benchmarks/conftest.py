"""A small classifier of the embedded digits as ONNX files: float, and quantized by ONNX Runtime itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression

from benchmarks.rivals.peers.__main__ import main as peer
from benchmarks.timing import machine
from calibration.datasets import load_data
from calibration.loader import batches
from calibration.preprocess import Preprocess
from calibration.transforms import eval_transform
from compress.engines.metadata import Metadata
from compress.engines.tensorrt.rtx import RTX
from compress.errors import BackendAbsent
from compress.export import overflow

PREPROCESS = Preprocess(size=64, mean=(0.5,) * 3, std=(0.5,) * 3)
METADATA = Metadata(
    arch="tiny",
    precision="fp32",
    preprocess=PREPROCESS,
    classes=tuple("0123456789"),
    macs=3_000_000,
    params=12_345,
    target="",
    version="0.1.0",
)


@pytest.fixture(scope="session")
def float_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Averaging convolution, then logistic regression fitted to some training digits: right on most of them."""
    train = load_data("digits", holdout=0).train
    assert train is not None
    x, y = next(iter(batches(train.subset(range(400), "train"), eval_transform(PREPROCESS), 400)))
    pooled = x.mean(1).reshape(400, 8, 8, 8, 8).mean((2, 4)).reshape(400, 64).numpy()
    fitted = LogisticRegression(max_iter=200).fit(pooled, y.numpy())
    weights = {
        "w1": np.full((1, 3, 8, 8), 1 / 192),
        "b1": np.zeros(1),
        "w2": fitted.coef_,
        "b2": fitted.intercept_,
    }
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["pooled"], name="pool", strides=[8, 8]),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w2", "b2"], ["logits"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *PREPROCESS.shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, METADATA.to_props())
    path = tmp_path_factory.mktemp("onnx") / "tiny_fp32.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def int8_onnx(float_onnx: Path) -> Path:
    """With 7-bit weights: right on every processor."""
    return quantized(float_onnx, "ort_reduce_range", "tiny_int8.onnx")


@pytest.fixture(scope="session")
def overflowing_onnx(float_onnx: Path) -> Path:
    """With all of the averaging convolution's weights at 127: without VNNI every pair of products overflows."""
    return quantized(float_onnx, "ort_minmax", "tiny_full_int8.onnx")


@pytest.fixture(params=["int16", "int32"])
def sums(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the engines are made to say that they add two products in: as a processor of either kind would."""
    for module in (machine, overflow):
        monkeypatch.setattr(module, "pair_sums", lambda engine: request.param)
    return str(request.param)


def quantized(float_onnx: Path, by: str, name: str) -> Path:
    path = float_onnx.with_name(name)
    peer([by, "--fp32", str(float_onnx), "--data", "digits", "--images", "40", "--out", str(path)])
    return path


@pytest.fixture(scope="session")
def rtx() -> None:
    """Skip the test where TensorRT for RTX cannot build."""
    try:
        RTX.require_builder("cuda")
    except BackendAbsent as absent:
        pytest.skip(absent.message)
