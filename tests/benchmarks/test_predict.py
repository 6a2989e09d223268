from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.evaluation.images import evaluation_split
from benchmarks.evaluation.predictions import predict
from benchmarks.predict import main
from benchmarks.results.answers import PredictFile


@pytest.fixture
def digits(tmp_path: Path) -> list[Path]:
    """Evaluation images as files."""
    split = evaluation_split("digits").subset(range(3), "eval")
    files = [tmp_path / "images" / f"{i}.png" for i in range(3)]
    files[0].parent.mkdir()
    for i, file in enumerate(files):
        split.image(i).save(file)
    return files


def record(file: Path) -> PredictFile:
    return PredictFile.model_validate_json(file.read_text())


def test_answers_are_those_of_the_accuracy(int8_onnx: Path, digits: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    assert main([*map(str, digits), "--engine", str(int8_onnx), "--top", "4", "--json", str(out)]) == 0
    found = record(out)
    known = predict(int8_onnx, evaluation_split("digits").subset(range(3), "eval"))
    assert [answer.image for answer in found.answers] == list(map(str, digits))
    for answer, ranked, logits in zip(found.answers, known.ranked, known.logits, strict=True):
        assert [one.index for one in answer.classes] == ranked[:4].tolist()
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert [one.probability for one in answer.classes] == pytest.approx(shares[ranked[:4]].tolist(), abs=1e-5)
    assert found.latency_ms is not None


@pytest.mark.parametrize("word", ["images", "images/*.png", "images/0.png"])
def test_folders_and_patterns(
    float_onnx: Path, digits: list[Path], word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(digits[0].parents[1])
    assert main([word, "--engine", str(float_onnx)]) == 0
    said = capsys.readouterr().out
    assert said.count("images/") == (1 if word.endswith("0.png") else 3)
    assert "not a benchmark" in said


def test_other_images_are_answered_when_one_is_broken(
    float_onnx: Path, digits: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits[1].write_bytes(digits[1].read_bytes()[:60])
    Image.new("RGB", (9, 9)).save(tmp_path / "small.png")
    words = [str(digits[0]), str(digits[1]), str(tmp_path / "small.png"), "gone.png", "no/*.png", str(digits[2])]
    assert main([*words, "--engine", str(float_onnx), "--json", "-"]) == 1
    told = capsys.readouterr()
    found = PredictFile.model_validate(json.loads(told.out))
    assert [answer.image for answer in found.answers] == [str(digits[0]), str(digits[2])]
    assert len(found.errors) == 4
    for name in ("1.png", "small.png", "gone.png", "no/*.png"):
        assert told.err.count(name) == 1


def test_no_image_at_all(float_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--engine", str(float_onnx)]) == 1
    told = capsys.readouterr()
    assert "there are no images in" in told.err
    assert "a run" not in told.out
    assert main(["--engine", str(float_onnx)]) == 2


def test_an_engine_that_is_not_there(digits: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(digits[0]), "--engine", "gone.onnx"]) == 1
    assert "no such engine file" in capsys.readouterr().err
