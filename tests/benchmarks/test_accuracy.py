from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from PIL import Image

from benchmarks.accuracy import main
from benchmarks.evaluation.images import evaluation_split
from benchmarks.evaluation.pairing import Gates, compare, result_of
from benchmarks.evaluation.predictions import predict
from benchmarks.results.accuracy import PairedAccuracy
from benchmarks.results.schema import json_schema
from calibration.datasets import load_data
from compress.errors import DataError, EngineError


@pytest.fixture(scope="module")
def edited(float_onnx: Path, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """Copies of the classifier with another bias."""

    def make(name: str, bias: np.ndarray) -> Path:
        model = onnx.load(float_onnx)
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "b2")
        tensor.CopyFrom(onnx.numpy_helper.from_array(bias.astype(np.float32), "b2"))
        path = tmp_path_factory.mktemp("edited") / f"{name}.onnx"
        onnx.save(model, path)
        return path

    return make


def test_accuracy_of_the_digits(float_onnx: Path) -> None:
    found = predict(float_onnx, evaluation_split("digits"), batch_size=64)
    result = result_of(found)
    assert result.images == 450
    assert result.top1.value.value > 0.85
    assert result.top5 is not None
    assert result.top5.value.value > result.top1.value.value
    assert result.top1.correct == int((found.ranked[:, 0] == found.labels).sum())
    jsonschema.validate(json.loads(result.model_dump_json()), json_schema())


def test_batch_size_changes_nothing(float_onnx: Path) -> None:
    split = evaluation_split("digits").subset(range(30), "eval")
    a, b = (predict(float_onnx, split, batch_size=size) for size in (7, 30))
    np.testing.assert_array_equal(a.ranked, b.ranked)


def test_fixed_batch_is_filled_up(float_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(float_onnx)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 8
    onnx.save(model, tmp_path / "fixed.onnx")
    split = evaluation_split("digits").subset(range(30), "eval")
    fixed, free = predict(tmp_path / "fixed.onnx", split), predict(float_onnx, split)
    np.testing.assert_array_equal(fixed.ranked, free.ranked)


def test_int8_is_paired_with_fp32(float_onnx: Path, int8_onnx: Path) -> None:
    split = evaluation_split("digits")
    this, other = predict(int8_onnx, split), predict(float_onnx, split)
    paired = compare(this, other)
    assert paired.agreement > 0.95
    assert paired.difference.value == pytest.approx((this.right.sum() - other.right.sum()) / 450)
    assert compare(this, this).difference.value == 0


def test_command_line(float_onnx: Path, int8_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "accuracy.json"
    flags = ["--against", str(float_onnx), "--data", "digits", "--max-drop", "5", "--json", str(out)]
    assert main(["--engine", str(int8_onnx), *flags]) == 0
    assert "450 images" in capsys.readouterr().out
    jsonschema.validate(json.loads(out.read_text())[0], json_schema())


def test_a_file_that_overflows_here_is_warned_of(overflowing_onnx: Path, sums: str, tmp_path: Path) -> None:
    out = tmp_path / "accuracy.json"
    assert main(["--engine", str(overflowing_onnx), "--data", "digits", "--json", str(out)]) == 0
    (record,) = json.loads(out.read_text())
    assert record["host"]["int8_pair_sums"] == {"onnxruntime": sums}
    assert any("can overflow" in text for text in record["warnings"]) == (sums == "int16")


def test_worse_model_fails_the_gate(edited, float_onnx: Path) -> None:  # type: ignore[no-untyped-def]
    worse = edited("worse", np.where(np.arange(10) == 3, 10.0, 0.0))
    flags = ["--against", str(float_onnx), "--data", "digits"]
    assert main(["--engine", str(worse), *flags, "--max-drop", "1.0"]) == 3
    assert main(["--engine", str(worse), *flags, "--min-ratio", "0.99"]) == 3


@pytest.fixture(scope="module")
def pair(float_onnx: Path, edited) -> PairedAccuracy:  # type: ignore[no-untyped-def]
    """A network with a slightly other bias against the one that it was made from."""
    other = predict(float_onnx, evaluation_split("digits"))
    return compare(predict(edited("biased", np.where(np.arange(10) == 3, 0.3, 0.0)), evaluation_split("digits")), other)


def test_gates_decide_on_the_bound_not_on_the_point(pair: PairedAccuracy) -> None:
    assert pair.ratio is not None
    drop, worst_drop = -100 * pair.difference.value, -100 * pair.difference.lo
    between = (drop + worst_drop) / 2  # the drop that was measured is allowed, the one within the interval is not
    assert drop < between
    assert [text.split(", ")[0] for text in Gates(max_drop=between).failures(pair)] == [
        f"the 95% interval includes a drop of {worst_drop:.2f} points"
    ]
    assert not Gates(max_drop=worst_drop + 0.01).failures(pair)
    between = (pair.ratio.value + pair.ratio.lo) / 2
    assert pair.ratio.value > between
    assert [text.split(", ")[0] for text in Gates(min_ratio=between).failures(pair)] == [
        f"the 95% interval includes a ratio of {pair.ratio.lo:.4f}"
    ]
    assert not Gates(min_ratio=pair.ratio.lo - 1e-4).failures(pair)
    assert not Gates().failures(pair)


def test_against_an_engine_that_is_never_right_there_is_no_ratio(float_onnx: Path) -> None:
    split = evaluation_split("digits").subset(range(20), "eval")
    this = predict(float_onnx, split)
    wrong = dataclasses.replace(this, ranked=(this.labels[:, None] + np.arange(1, 6)) % 10)
    paired = compare(this, wrong)
    assert paired.ratio is None
    assert Gates(min_ratio=0.99).failures(paired)


def test_the_classes_add_up_to_the_whole(float_onnx: Path, pair: PairedAccuracy) -> None:
    result = result_of(predict(float_onnx, evaluation_split("digits")))
    assert [one.name for one in result.per_class] == list("0123456789")
    assert sum(one.images for one in result.per_class) == result.images
    assert sum(one.correct for one in result.per_class) == result.top1.correct
    assert sum(one.correct for one in pair.per_class) == pair.top1.correct


def test_kept_predictions_stand_in_for_the_engine(
    float_onnx: Path, int8_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, json_file = tmp_path / "fp32.npz", tmp_path / "accuracy.json"
    assert main(["--engine", str(float_onnx), "--data", "digits", "--save-predictions", str(kept)]) == 0
    flags = ["--data", "digits", "--against", str(kept), "--per-class", "--min-ratio", "0.95", "--json", str(json_file)]
    assert main(["--engine", str(int8_onnx), *flags]) == 0
    shown = capsys.readouterr().out
    assert "right there" in shown
    found = json.loads(json_file.read_text())[0]
    jsonschema.validate(found, json_schema())
    split = evaluation_split("digits")
    assert found["paired"] == compare(predict(int8_onnx, split), predict(float_onnx, split)).model_dump(mode="json")


def test_nan_outputs_are_invalid_and_not_kept(edited, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    kept = tmp_path / "nan.npz"
    flags = ["--data", "digits", "--save-predictions", str(kept)]
    assert main(["--engine", str(edited("nan", np.full(10, np.nan))), *flags]) == 4
    assert not kept.exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--max-drop", "1", "--data", "digits"],
        ["--min-ratio", "0.99", "--data", "digits"],
        ["--save-predictions", "kept.json", "--data", "digits"],
        [],
    ],
)
def test_usage_mistakes_exit_2(float_onnx: Path, flags: list[str]) -> None:
    assert main(["--engine", str(float_onnx), *flags]) == 2


@pytest.mark.parametrize(
    "flags", [["--batch", "0"], ["--threads", "-1"], ["--batch", "many"], ["--max-drop", "-1"], ["--min-ratio", "nan"]]
)
def test_numbers_that_cannot_be_exit_2(flags: list[str]) -> None:
    assert main(["--engine", "a.onnx", "--data", "digits", *flags]) == 2


def test_images_of_the_configuration_with_overrides(
    float_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in range(10):
        (tmp_path / "images" / str(label)).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "images" / str(label) / "1.png")
    config = tmp_path / "c.toml"
    config.write_text('[data]\nkind = "imagefolder"\n')
    flags = ["--config", str(config), "--set", f"data.eval={tmp_path / 'images'}"]
    assert main(["--engine", str(float_onnx), *flags]) == 0
    assert "on 10 images" in capsys.readouterr().out
    assert main(["--engine", str(float_onnx), "--set", "data.kind=digits"]) == 0
    assert "on 450 images" in capsys.readouterr().out


def test_other_classes_are_an_error(float_onnx: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / name / "1.png")
    with pytest.raises(DataError, match=r"10 outputs.*2 classes"):
        predict(float_onnx, evaluation_split(str(tmp_path)))


def test_foreign_file_says_what_it_lacks(float_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(float_onnx)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(EngineError, match="does not say how its images are prepared"):
        predict(tmp_path / "foreign.onnx", load_data("digits").eval)
