"""The section ``[data]``: preprocessing, bad values, broken images, and what invalidates a stage."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.preprocess import IMAGENET_MEAN, Preprocess
from calibration.transforms import eval_transform
from compress.config import DataConfig, load_config
from compress.data import RunImages, data_settings, open_data, preprocess_of
from compress.errors import ConfigError, DataError
from compress.files import to_json


def data_of(*settings: str) -> DataConfig:
    return load_config(None, ["data.kind=imagefolder", *(f"data.{setting}" for setting in settings)]).data


@pytest.mark.parametrize("setting", ["std=[1, nan, 1]", "std=[inf, 1, 1]", "mean=[0, inf, 0]", "mean=[nan, 0, 0]"])
def test_mean_and_std_must_be_finite(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.(mean|std) .* must be finite"):
        preprocess_of(load_config(None, [f"data.{setting}"]).data)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        (["mean=[123.675, 116.28, 103.53]"], "data.mean = [0.485, 0.456, 0.406]"),
        (["mean=[123.675, 116.28, 103.53]", "std=[58.395, 57.12, 57.375]"], "data.std = [0.229, 0.224, 0.225]"),
        (["std=58.4"], "data.std = [0.229]"),
        (["mean=[103.9, 116.8, 123.7]", "std=1"], "data.std = [0.003922]"),
    ],
)
def test_values_for_pixels_of_0_to_255_are_refused_with_the_right_ones(settings: list[str], remedy: str) -> None:
    with pytest.raises(ConfigError, match=r"is for pixels of 0\.\.255") as error:
        preprocess_of(data_of(*settings))
    assert remedy in error.value.remedy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["std=0"], "std .* must be above"),
        (["std=[0.2, 0.2]"], "2 values, the input has 3 channels"),
        (["channels=4", "mean=[0.1, 0.1, 0.1]"], "3 values, the input has 4 channels"),
        (["crop=224", "input_size=256"], "two names of the network's input"),
        (["input_size=[32, 64]", "resize=48"], "smaller than the network's input"),
        (["input_size=[32, 64]", "resize=[64, 32]"], "smaller than the network's input"),
    ],
)
def test_values_that_contradict_one_another(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        preprocess_of(data_of(*settings))


@pytest.mark.parametrize("setting", ["input_size=100000", "input_size=[3, 4, 5]", "crop=0", "resize=[0, 3]", "crop=x"])
def test_sizes_that_no_image_has(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"one number of pixels, or \[height, width\]"):
        data_of(setting)


@pytest.mark.parametrize(
    ("settings", "size", "resize"),
    [
        ([], 224, 256),
        (["crop=224", "resize=232"], 224, 232),
        (["input_size=[32, 64]"], (32, 64), (32, 64)),
        (["input_size=32x64", "resize=[40, 80]"], (32, 64), (40, 80)),
        (["input_size=[64, 64]"], 64, 73),
        (["input_size=225", "resize=0"], 225, 0),
    ],
)
def test_sizes(settings: list[str], size: Any, resize: Any) -> None:
    found = preprocess_of(data_of(*settings))
    assert (found.size, found.resize) == (size, resize)
    image = Image.new("RGB", (300, 260))
    assert eval_transform(found)(image).shape == found.shape


def test_how_images_are_resized() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    found = [
        eval_transform(preprocess_of(data_of("input_size=24", *more)))(image)
        for more in ([], ["interpolation=bicubic"], ["interpolation=nearest"], ["antialias=false"])
    ]
    assert all((one - found[0]).abs().max() > 0.1 for one in found[1:])


def test_channels() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 51, 102))
    plain = ["input_size=8", "mean=0", "std=1"]
    values = {
        name: eval_transform(preprocess_of(data_of(*plain, *more)))(image)[:, 0, 0].tolist()
        for name, more in {
            "rgb": [],
            "bgr": ["channel_order=BGR"],
            "grey": ["channels=1"],
            "rgba": ["channels=4"],
        }.items()
    }
    assert values["rgb"] == pytest.approx([1, 0, 0.2])
    assert values["bgr"] == pytest.approx([0.2, 0, 1])
    assert values["grey"] == pytest.approx([0.299 + 0.114 * 0.2], abs=0.01)
    assert values["rgba"] == pytest.approx([1, 0, 0.2, 0.4], abs=0.01)
    grey = Image.new("L", (8, 8), 51)
    assert eval_transform(preprocess_of(data_of(*plain)))(grey)[:, 0, 0].tolist() == pytest.approx([0.2] * 3)
    assert preprocess_of(data_of("channel_order=bgr")).mean == IMAGENET_MEAN[::-1]


def test_published_preprocessing_comes_before_the_default_and_after_what_is_given() -> None:
    published = {"input_size": 160, "resize": 168, "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    found = preprocess_of(data_of("std=[0.1, 0.2, 0.3]"), published)
    assert found == Preprocess(160, 168, (0.5,) * 3, (0.1, 0.2, 0.3), interpolation="bicubic")
    assert preprocess_of(data_of("input_size=224"), published).resize == 256


def test_a_byte_order_mark_in_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('\ufeff[data]\nkind = "imagefolder"\n', encoding="utf-8")
    assert load_config(tmp_path / "c.toml").data.kind == "imagefolder"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images of two classes, two of them broken."""
    for i in range(12):
        path = tmp_path / "train" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (i, i, i)).save(path)
    for i in (3, 4):
        path = tmp_path / "train" / "ab"[i % 2] / f"{i}.jpg"
        path.write_bytes(path.read_bytes()[:-20])
    return tmp_path


class Notes:
    """Keeps what is said, and what is counted."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.counted = 0

    def track(self, items: Any, what: str, total: int | None = None) -> Any:
        for item in items:
            self.counted += 1
            yield item

    def note(self, text: str) -> None:
        self.said.append(text)


def test_broken_images_are_named_together_before_anything_else(folder: Path) -> None:
    images = RunImages(data_of(f"train={folder / 'train'}"), 0, folder / "run")
    with pytest.raises(DataError, match="2 of 12 images cannot be read") as error:
        _ = images.data
    assert {"3.jpg", "4.jpg"} <= {word.strip("(:").rpartition("/")[2] for word in error.value.message.split()}
    assert "data.skip_broken=true" in error.value.remedy


def test_broken_images_are_left_out_and_told_each_time(folder: Path) -> None:
    config = data_of(f"train={folder / 'train'}", "skip_broken=true")
    for counted in (12, 2):  # those that are whole are read once
        notes = Notes()
        data = RunImages(config, 0, folder / "run", notes).data
        assert notes.counted == counted
        assert ["left out: 2 of 12" in text for text in notes.said] == [True]
        assert sum(map(len, (data.train, data.holdout))) == 10  # type: ignore[arg-type]
    assert sum(map(len, open_data(config, 0).splits)) == 10


def test_an_image_that_has_changed_is_read_again(folder: Path) -> None:
    config = data_of(f"train={folder / 'train' / 'a'}", "skip_broken=true")
    Image.new("RGB", (16, 16)).save(folder / "train" / "a" / "4.jpg")
    counts = []
    for _ in range(2):
        notes = Notes()
        _ = RunImages(config, 0, folder / "run", notes).data
        counts.append(notes.counted)
        os.utime(folder / "train" / "a" / "4.jpg", ns=(1, 1))
    assert counts == [6, 1]


def test_what_invalidates_a_stage(folder: Path) -> None:
    train = f"train={folder / 'train'}"
    (folder / "labels.csv").write_text("a/0.jpg,1\n")
    listed = f"labels={folder / 'labels.csv'}"
    before = data_settings(data_of(train, listed))
    assert data_settings(data_of(train, listed, "workers=3", "skip_broken=true")) == before
    assert data_settings(data_of(train, listed, "interpolation=bicubic")) != before
    (folder / "labels.csv").write_text("a/0.jpg,2\n")
    assert data_settings(data_of(train, listed)) != before
    with pytest.raises(DataError, match=r"data\.labels=.*gone"):
        data_settings(data_of(train, "labels=gone.csv"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"\xe9")
    (root / "a").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "a" / "0.png")
    config = data_of().model_copy(update={"eval": root})
    assert "\\xe9" in to_json(data_settings(config))
    assert len(open_data(config, 0, run=tmp_path / "run").splits) == 1
