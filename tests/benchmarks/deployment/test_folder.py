"""The folder for a device: what it holds, what it answers in Python and in C++, and when it is not written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from benchmarks.deploy import main
from benchmarks.deployment.network import open_network
from calibration.decode import decode
from calibration.preprocess import Preprocess
from compress.config import TargetConfig
from compress.engines.base import build_engine

Maker = Callable[..., Path]  # see conftest.network
ALONE = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    ours = {"benchmarks", "calibration", "compress", "torch", "onnx"} & set(sys.modules)
    assert not ours, ours
"""


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (31, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def deployed(engine: Path, *words: str) -> Path:
    out = engine.parent / "device"
    assert main(["--engine", str(engine), "--output", str(out), *words]) == 0
    return out


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the folder's predict.py as a device does: without any package of ours."""
    command = [sys.executable, "-P", "-c", ALONE, str(folder / "predict.py"), *words]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True, check=False)


def shares(said: str) -> list[tuple[str, float]]:
    """The classes that a program has printed, with their percentages."""
    return [(name, float(share)) for share, name in re.findall(r"^ +([\d.]+)%  (.*)$", said, re.MULTILINE)]


def harness(engine: Path, image: Path) -> dict[str, np.ndarray]:
    with open_network(engine) as network:
        return network.run(network.input(decode(image, alpha=True)))


def test_digits_are_answered_as_here(int8_onnx: Path, tmp_path: Path, build: Callable[[Path], Path]) -> None:
    out = tmp_path / "device"
    words = ["--engine", str(int8_onnx), "--output", str(out), "--data", "digits", "--samples", "3"]
    assert main(words) == 0
    assert json.loads((out / "classes.json").read_text()) == list("0123456789")
    checked = python(out, "--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("the input is the same bit for bit") == 3

    expected = json.loads((out / "expected.json").read_text())["samples"]
    files = [str(out / one["file"]) for one in expected]
    told = shares(python(out, *files).stdout)
    assert len(told) == 15
    for i, sample in enumerate(expected):
        found = [one["name"] for one in sample["answer"]]
        assert [name for name, _ in told[5 * i :][: len(found)]] == found
    program = build(out)
    done = subprocess.run([str(program), str(out / int8_onnx.name), *files], capture_output=True, text=True, check=True)
    for ours, theirs in zip(told, shares(done.stdout), strict=True):
        assert ours[0] == theirs[0]
        assert ours[1] == pytest.approx(theirs[1], abs=0.011)
    broken = subprocess.run(
        [str(program), str(out / int8_onnx.name), str(out / "README.md"), files[0]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert broken.returncode == 1
    assert "README.md is not a binary PPM" in broken.stderr
    assert len(shares(broken.stdout)) == 5


def test_everything_in_it_is_hashed_and_no_path_of_this_machine_is_in_it(network: Maker, photo: Path) -> None:
    engine = network()
    model = onnx.load(engine)
    trace = model.graph.node[0].metadata_props.add()
    trace.key, trace.value = "pkg.torch.onnx.stack_trace", f'File "{engine.parent}/net.py", line 3, in forward'
    onnx.save(model, engine)
    out = deployed(engine, "--images", str(photo))
    sums = dict(reversed(line.split("  ", 1)) for line in (out / "SHA256SUMS").read_text().splitlines())
    written = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert sums.keys() == written - {"SHA256SUMS"}
    for name, digest in sums.items():
        content = (out / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
        assert str(engine.parent).encode() not in content
    facts = json.loads((out / "engine.json").read_text())
    assert facts["sha256"] == sums[engine.name]
    assert facts["built_sha256"] == hashlib.sha256(engine.read_bytes()).hexdigest()
    assert "onnxruntime==" in (out / "requirements.txt").read_text()
    assert python(out, "--check").returncode == 0


WIDE = Preprocess(size=(6, 10), resize=(8, 12), channels=1, mean=(0.3,), std=(0.2,))
BGR = Preprocess(size=8, resize=9, interpolation="bicubic", channel_order="bgr")
ALPHA = Preprocess(size=8, channels=4, mean=(0.5,) * 4, std=(0.5,) * 4)
NAMES = ('a "quoted" \\ name', "caf\u00e9 ??/ 100%d")


@pytest.mark.parametrize(
    ("form", "reads"),
    [
        ({"preprocess": WIDE}, "logits"),
        ({"preprocess": BGR, "end": "Softmax"}, "probabilities"),
        ({"preprocess": ALPHA}, "logits"),
        ({"classes": NAMES, "outputs": 1}, "logits"),
        ({"classes": NAMES, "outputs": 1, "end": "Sigmoid"}, "probabilities"),
        ({"classes": ("defect",), "outputs": 1, "end": "Sigmoid"}, "probabilities"),
        ({"batch": 4}, "logits"),
        ({"classes": (), "outputs": 7}, "numbers"),
        ({"features": True, "batch": 2}, "numbers"),
    ],
)
def test_any_network_is_answered_in_python(network: Maker, photo: Path, form: dict[str, object], reads: str) -> None:
    engine = network(**form)
    out = deployed(engine, "--images", str(photo))
    assert json.loads((out / "engine.json").read_text())["returns"] == reads
    checked = python(out, "--check", str(photo))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "the input is the same bit for bit" in checked.stdout
    outputs = harness(engine, photo)
    if reads == "numbers":
        for name, array in outputs.items():
            assert f"  {name}: {' '.join(map(str, array.shape))}; min {array.min():.6g}, mean" in checked.stdout
        return
    told = dict(shares(checked.stdout))
    row = outputs["y"].astype(float)
    classes = form.get("classes", ("cat", "dog", "fox"))
    if len(row) == 1:
        second = float(row[0] if form.get("end") else 1 / (1 + np.exp(-row[0])))
        row = np.array([1 - second, second])[-len(classes) :]  # type: ignore[arg-type]
    elif reads == "logits":
        row = np.exp(row) / np.exp(row).sum()
    assert told == pytest.approx(dict(zip(classes, 100 * row, strict=True)), abs=0.006)  # type: ignore[call-overload]
    assert (out / "cpp").exists() == (form.get("preprocess") is not ALPHA)


@pytest.mark.parametrize(
    "form",
    [
        {"preprocess": WIDE, "classes": NAMES, "outputs": 1},
        {"preprocess": BGR, "end": "Softmax", "batch": 3},
        {"features": True},
    ],
)
def test_any_network_is_answered_in_cpp(
    network: Maker, photo: Path, form: dict[str, object], build: Callable[[Path], Path]
) -> None:
    engine = network(**form)
    out = deployed(engine, "--images", str(photo))
    command = [str(build(out)), str(out / engine.name), str(out / "samples" / "1.ppm")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ours = python(out, str(out / "samples" / "1.ppm")).stdout
    assert told.splitlines()[:-1] == ours.splitlines()[:-1]  # the last line is the latency


def test_a_device_that_computes_otherwise_is_found_out(network: Maker, photo: Path) -> None:
    out = deployed(network(), "--images", str(photo))
    expected = json.loads((out / "expected.json").read_text())
    expected["samples"][0]["outputs"]["y"][0] += 1.0
    (out / "expected.json").write_text(json.dumps(expected))
    checked = python(out, "--check")
    assert checked.returncode == 1
    assert "DIFFERENT" in checked.stdout
    assert "FAIL" in checked.stdout


def test_a_damaged_image_on_the_device_stops_only_itself(network: Maker, photo: Path) -> None:
    out = deployed(network())
    damaged = photo.with_name("damaged.png")
    damaged.write_bytes(b"no image")
    done = python(out, str(damaged), str(photo))
    assert done.returncode == 1
    assert "damaged.png" in done.stderr
    assert len(shares(done.stdout)) == 3


def openvino_engine(network: Maker) -> Path:
    pytest.importorskip("openvino")
    source = network()
    return build_engine("openvino", source, source.parent / "ir", TargetConfig(name="openvino"))


def test_openvino_is_answered_in_python(network: Maker, photo: Path) -> None:
    engine = openvino_engine(network)
    out = deployed(engine, "--images", str(photo))
    assert (out / engine.name).with_suffix(".bin").exists()
    checked = python(out, "--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.slow
def test_openvino_is_answered_in_cpp(network: Maker, photo: Path, build: Callable[[Path], Path]) -> None:
    engine = openvino_engine(network)
    out = deployed(engine, "--images", str(photo))
    command = [str(build(out)), str(out / engine.name), str(out / "samples" / "1.ppm")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[:-1] == python(out, str(out / "samples" / "1.ppm")).stdout.splitlines()[:-1]


def test_a_run_without_evaluation_images_has_no_samples(
    network: Maker, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("data.kind=imagefolder", f"data.calibration={photo.parent}")
    out = deployed(network(), *(part for word in words for part in ("--set", word)))
    assert "without sample images" in capsys.readouterr().out
    assert not (out / "samples").exists()
    assert python(out, "--check").returncode == 0


def test_only_a_folder_of_its_own_is_replaced(network: Maker, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = network()
    out = deployed(engine, "--images", str(photo))
    words = ["--engine", str(engine), "--output", str(out)]
    assert main(words) == 2
    assert "replace it with --force" in capsys.readouterr().err
    assert (out / "samples").exists()
    assert main([*words, "--force"]) == 0
    assert not (out / "samples").exists()
    foreign = engine.parent / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("three years")
    assert main(["--engine", str(engine), "--output", str(foreign), "--force"]) == 2
    assert [file.name for file in foreign.iterdir()] == ["thesis.txt"]


def test_the_current_folder_is_refused_because_the_shell_would_stay_in_a_deleted_one(
    network: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, here = network().resolve(), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert main(["--engine", str(engine), "--output", "."]) == 2
    assert "is the current folder" in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_a_failure_leaves_nothing_behind(network: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = network()
    Image.new("RGB", (5, 5)).save(tmp_path / "small.png")
    before = sorted(tmp_path.iterdir())
    words = ["--engine", str(engine), "--output", str(tmp_path / "device")]
    assert main([*words, "--images", str(tmp_path / "small.png")]) == 1
    assert "smaller than the network's input" in capsys.readouterr().err
    assert main([*words, "--images", str(tmp_path / "gone.png")]) == 1
    assert "gone.png" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.plan", "TensorRT plan"), ("model.safetensors", "run by PyTorch"), ("gone.onnx", "no such engine file")],
)
def test_what_it_cannot_run_is_refused(
    tmp_path: Path, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if name != "gone.onnx":
        (tmp_path / name).write_bytes(b"")
    assert main(["--engine", str(tmp_path / name), "--output", str(tmp_path / "out")]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_for_another_engine_is_refused(network: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    engine = network(target="tensorrt", precision="int8")
    assert main(["--engine", str(engine), "--output", str(engine.parent / "out")]) == 1
    assert "which onnxruntime does not run in INT8" in capsys.readouterr().err
