from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from benchmarks.evaluation.images import evaluation_split
from benchmarks.evaluation.predictions import load_predictions, predict, save_predictions
from calibration.split import ArraySource, Split
from compress.errors import DataError, EngineError

DIGITS = evaluation_split("digits")
FEW = DIGITS.subset(range(40), "eval")


@pytest.fixture
def kept(float_onnx: Path, tmp_path: Path) -> Path:
    path = tmp_path / "kept.npz"
    save_predictions(predict(float_onnx, FEW), FEW, path)
    return path


def named(*names: str) -> Split:
    """Ten images with other class names."""
    return ArraySource("grey", np.zeros((10, 64, 64), np.uint8)).split("eval", names, np.arange(10))


def test_what_is_kept_comes_back(float_onnx: Path, kept: Path) -> None:
    before, after = predict(float_onnx, FEW), load_predictions(kept, FEW)
    for name in ("artifact", "backend", "modes", "names", "finite", "warnings"):
        assert getattr(after, name) == getattr(before, name)
    np.testing.assert_array_equal(after.labels, before.labels)
    np.testing.assert_array_equal(after.ranked, before.ranked)
    assert [path.name for path in kept.parent.iterdir()] == ["kept.npz"]


def test_the_same_images_elsewhere_are_the_same(float_onnx: Path, kept: Path) -> None:
    copied = ArraySource("copy", np.stack([FEW.source.pixels[i] for i in FEW.indices]))  # type: ignore[attr-defined]
    load_predictions(kept, copied.split("eval", FEW.classes, FEW.labels))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (DIGITS.subset(range(39), "eval"), "is of 40 images, but there are 39 eval images"),
        (DIGITS.subset(range(1, 41), "eval"), "of other images: 40 of 40 differ"),
        (DIGITS.subset([1, 0, *range(2, 40)], "eval"), "of other images: 2 of 40 differ, or are in another order"),
        (Split("eval", FEW.classes, (FEW.labels + 1) % 10, FEW.source, FEW.indices), "40 of their labels have changed"),
    ],
)
def test_other_images_are_not_paired(kept: Path, split: Split, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_predictions(kept, split)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": np.int64(9)}, "schema version 9, this version reads 1"),
        ({"schema_version": None}, "no item named 'schema_version"),
        ({"record": np.array("{}")}, "is damaged"),
        ({"ranked": None}, "no item named 'ranked"),
        ({"ranked": np.zeros((3, 5))}, "'ranked' holds float64"),
        ({"ranked": np.zeros((3, 5), np.int32)}, "to pair it with"),
        ({"ranked": np.full((40, 5), 99, np.int32)}, "are not classes"),
    ],
)
def test_a_file_of_another_version_or_damaged_says_so(kept: Path, change: dict[str, object], message: str) -> None:
    with np.load(kept) as file:
        held = {name: file[name] for name in file.files} | change
    np.savez(kept, **{name: value for name, value in held.items() if value is not None})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        load_predictions(kept, FEW)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 and then nothing"])
def test_no_predictions_at_all(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "kept.npz"
    with pytest.raises(DataError, match="cannot read the predictions"):
        load_predictions(path, FEW)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"does not hold predictions|cannot read"):
        load_predictions(path, FEW)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "kept.npz"
    np.savez(path, schema_version=np.array([object()], dtype=object))
    with pytest.raises(DataError, match="does not hold predictions"):
        load_predictions(path, FEW)


def test_names_in_another_order_are_an_error(float_onnx: Path) -> None:
    with pytest.raises(DataError, match=r"class 0 is '0' to tiny_fp32\.onnx and '1' to the images"):
        predict(float_onnx, named(*"1023456789"))


def test_another_way_of_naming_is_a_warning(float_onnx: Path) -> None:
    found = predict(float_onnx, named(*"abcdefghij"))
    assert len(found.warnings) == 1
    assert "taken to be the same by position" in found.warnings[0]
    assert not predict(float_onnx, named(*"0123456789")).warnings


def test_an_input_that_is_not_what_the_file_says(float_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(float_onnx)
    props = {prop.key: prop.value for prop in model.metadata_props}
    props["compress.preprocess"] = props["compress.preprocess"].replace('"size": 64', '"size": 32')
    onnx.helper.set_model_props(model, props)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(EngineError, match="is float32 32x3x32x32"):
        predict(tmp_path / "other.onnx", FEW)


def test_an_image_that_is_gone(float_onnx: Path, tmp_path: Path) -> None:
    for label in range(10):
        (tmp_path / str(label)).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / str(label) / "1.png")
    split = evaluation_split(str(tmp_path))
    found = predict(float_onnx, split)
    (tmp_path / "3" / "1.png").unlink()
    with pytest.raises(DataError, match="cannot read the image"):
        save_predictions(found, split, tmp_path / "kept.npz")
    assert not (tmp_path / "kept.npz").exists()
