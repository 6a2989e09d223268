from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import nn

from benchmarks.rivals.quantization import main, spread, sqnr_db
from benchmarks.rivals.quantization_step import Job, run_apart
from calibration.datasets import load_data
from calibration.loader import batches
from calibration.preprocess import Preprocess
from calibration.transforms import eval_transform
from compress.engines.metadata import Metadata
from compress.errors import EngineError
from compress.export.onnx import export_onnx
from compress.frontend.raising import raised
from compress.models.model import Model, save_model
from compress.models.registry import build
from compress.quantize.fold import fold

PREPROCESS = Preprocess(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
CLASSES = tuple("0123456789")


class Network(NamedTuple):
    fp32: Path
    model: Path


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """A ResNet-20 with random features and a classifier fitted to some digits, as a stage and as its FP32 file."""
    folder = tmp_path_factory.mktemp("network")
    train = load_data("digits", holdout=0).train
    assert train is not None
    x, y = next(iter(batches(train.subset(range(300), "train"), eval_transform(PREPROCESS), 300)))
    torch.manual_seed(0)
    net = build("cifar_resnet20", 10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    classifier, net.linear = net.linear, nn.Identity()
    with torch.no_grad():
        net.train()(x)  # the statistics of these images
        features = net.eval()(x)
        fitted = LogisticRegression(max_iter=1000).fit(features.numpy(), y.numpy())
        classifier.weight.copy_(torch.from_numpy(fitted.coef_))
        classifier.bias.copy_(torch.from_numpy(fitted.intercept_))
    net.linear = classifier
    save_model(Model(net, "cifar_resnet20", PREPROCESS, CLASSES), folder)
    metadata = Metadata("cifar_resnet20", "fp32", PREPROCESS, CLASSES, macs=1, params=1, target="", version="0")
    export_onnx(fold(raised(net, (3, 32, 32))), folder / "net_fp32.onnx", metadata, opset=20)
    return Network(folder / "net_fp32.onnx", folder)


@pytest.mark.slow
def test_ours_beside_a_peer_and_asked_again(
    network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--fp32", str(network.fp32), "--data", "digits", "--eval", "digits", "--images", "20"]
    # This peer's weights have 7 bits: those of 8 would make it a bad one on processors without VNNI.
    flags += ["--peers", "ort_reduce_range", "--ours", "ort-x86", str(network.fp32), "--model", str(network.model)]
    assert main([*flags, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"python -m benchmarks.latency --rigorous --engine {tmp_path}" in out
    record = json.loads((tmp_path / "quantization.json").read_text())
    peer, ours, same = record["rows"]
    for row in (peer, ours):
        (step,) = row["steps"]
        assert 0 < step["start_bytes"] <= step["peak_bytes"]
        assert step["seconds"] > 0
        assert row["sqnr_db"] > 10
        assert row["accuracy"]["paired"]["agreement"] > 0.8
        assert Path(row["file"]).is_file()
    assert (same["steps"], same["sqnr_db"], same["accuracy"]["paired"]["agreement"]) == ([], None, 1.0)
    assert "| ort-x86" in (tmp_path / "quantization.md").read_text()

    made = [Path(row["file"]).stat().st_mtime_ns for row in (peer, ours)]
    assert main([*flags, "--out", str(tmp_path)]) == 0
    assert [Path(row["file"]).stat().st_mtime_ns for row in (peer, ours)] == made
    assert json.loads((tmp_path / "quantization.json").read_text())["rows"][0]["steps"] == peer["steps"]


def test_files_alone_are_compared_without_quantizing(network: Network, tmp_path: Path) -> None:
    flags = ["--fp32", str(network.fp32), "--data", "digits", "--eval", "digits", "--images", "20"]
    assert main([*flags, "--peers", "--ours", str(network.fp32), "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "quantization.json").read_text())["rows"]
    assert (row["name"], row["steps"], row["accuracy"]["paired"]["agreement"]) == (str(network.fp32), [], 1.0)


def test_error_in_the_child_names_the_candidate_and_leaves_no_file(network: Network, tmp_path: Path) -> None:
    cut = tmp_path / "cut_fp32.onnx"
    cut.write_bytes(network.fp32.read_bytes()[:5000])
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(EngineError, match=r"ort_minmax: .*cut_fp32\.onnx is not a whole ONNX file"):
        run_apart(Job("ort_minmax", cut, None, "digits", images=20, seed=0), out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--peers"], "nothing to compare"),
        (["--ours", "ort-x86"], "needs the float network"),
        (["--ours", "ort-x68"], "neither a file nor a target"),
    ],
)
def test_usage_mistakes_exit_2(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--fp32", "a.onnx", "--data", "digits", "--eval", "digits", "--out", "out", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_calibration_images_are_not_evaluated_on(
    network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in range(2):
        (tmp_path / "images" / str(label)).mkdir(parents=True)
        Image.new("RGB", (32, 32), (label * 99,) * 3).save(tmp_path / "images" / str(label) / "1.png")
    folder, out = str(tmp_path / "images"), tmp_path / "out"
    flags = ["--fp32", str(network.fp32), "--data", folder, "--eval", folder, "--images", "2"]
    assert main([*flags, "--out", str(out)]) == 1
    assert "is also evaluation image" in capsys.readouterr().err
    assert main([*flags, "--images", "3", "--out", str(out)]) == 1
    assert "3 calibration images asked for" in capsys.readouterr().err
    assert not out.exists()


@given(st.floats(1e-3, 1e3), st.floats(1e-4, 0.5))
def test_sqnr_depends_on_relative_noise_alone(scale: float, noise: float) -> None:
    reference = scale * np.array([[1.0, -2.0], [0.5, 3.0]])
    assert sqnr_db(reference, reference * (1 + noise)) == pytest.approx(-20 * math.log10(noise))
    assert sqnr_db(reference, reference) == math.inf


def test_times_are_told_with_their_range() -> None:
    assert spread([3.0, 1.0, 2.0]) == "2.0 [1.0, 3.0]"
    assert spread([1.0]) == "1.0"
