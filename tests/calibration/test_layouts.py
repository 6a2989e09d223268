"""Folders as people have them: what systems leave in them, tables of labels, images without labels."""

import os
import sys

import numpy as np
import pytest
from PIL import Image

from calibration.datasets import listing, load_data
from calibration.errors import DataError
from calibration.folder import read_folder, read_listed
from calibration.labels import read_labels


def image_at(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(path)


@pytest.fixture
def flat(tmp_path):
    """train with a.png .. d.png, eval with e.png and f.png."""
    for i, name in enumerate("abcdef"):
        image_at(tmp_path / ("train" if i < 4 else "eval") / f"{name}.png", 40 * i)
    return tmp_path


@pytest.mark.parametrize("folder", [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".Trash", "System Volume Information"])
def test_what_systems_leave_is_not_read(tmp_path, folder):
    for name in ("cat", "dog"):
        image_at(tmp_path / name / "0.png")
    before = listing(tmp_path)
    image_at(tmp_path / folder / "0.png")
    image_at(tmp_path / "cat" / folder / "0-checkpoint.png")
    image_at(tmp_path / "cat" / "._0.png")
    for name in (".DS_Store", "Thumbs.db"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    split = read_folder(tmp_path, "train")
    assert (split.classes, len(split)) == (("cat", "dog"), 2)
    (tmp_path / "cat" / "Thumbs.db").unlink()
    assert listing(tmp_path) == before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf8(tmp_path):
    root = tmp_path / os.fsdecode(b"caf\xe9")
    for name in (b"a\xff", b"b"):
        image_at(root / os.fsdecode(name) / os.fsdecode(b"\xe9.png"))
    data = load_data("imagefolder", train=root, eval=root, holdout=0)
    assert data.train.classes == (r"a\xff", "b")
    assert data.train.image(0).size == (8, 8)
    assert listing(root)


def test_parts_of_a_data_set_are_not_taken_for_classes(tmp_path):
    for part in ("train", "val"):
        image_at(tmp_path / part / "cat" / "0.png")
    with pytest.raises(DataError, match="train, val: these are parts of a data set") as error:
        read_folder(tmp_path, "train")
    assert "data.train=" in error.value.remedy


def test_images_without_labels(flat):
    data = load_data("imagefolder", train=flat / "train")
    assert not data.train.labelled
    assert (len(data.train), len(data.holdout), data.labelled) == (3, 1, None)
    assert not data.holdout.labelled
    assert load_data("imagefolder", train=flat / "train", holdout=0).holdout is None
    with pytest.raises(DataError, match="2 images but no class folders") as error:
        load_data("imagefolder", train=flat / "train", eval=flat / "eval")
    assert "data.labels" in error.value.remedy


NUMBERS = "filename,label\na.png,1\nb.png,0\nc.png,1\nd.png,0\ne.png,0\nf.png,1\n"
NAMES = NUMBERS.replace(",0", ",cat").replace(",1", ",dog")


@pytest.mark.parametrize("text", [NUMBERS, NAMES])
@pytest.mark.parametrize(
    "written",
    [
        lambda text: text,
        lambda text: text.partition("\n")[2],
        lambda text: "\ufeff" + text,
        lambda text: text.replace(",", ";"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace(".png", ""),
        lambda text: text.replace("filename,label", "id,class"),
    ],
    ids=["header", "no header", "mark", "semicolons", "windows", "no suffix", "kaggle"],
)
def test_a_table_of_labels_for_flat_folders(flat, text, written):
    (flat / "all.csv").write_text(written(text), newline="")
    data = load_data("imagefolder", train=flat / "train", eval=flat / "eval", labels=flat / "all.csv", holdout=0)
    assert data.train.labels.tolist() == [1, 0, 1, 0]
    assert data.eval.labels.tolist() == [0, 1]
    assert data.train.classes == (("cat", "dog") if text is NAMES else ("0", "1"))


def test_a_table_may_write_paths_from_its_own_folder(flat):
    image_at(flat / "eval" / "a.png", 250)
    (flat / "all.csv").write_text("train/a.png,cat\neval/a.png,dog\n")
    found = read_listed({"train": flat / "train", "eval": flat / "eval"}, flat / "all.csv")
    assert [found[name].image(0).getpixel((0, 0))[0] for name in ("train", "eval")] == [0, 250]
    (flat / "all.csv").write_text("a.png,cat\n")
    with pytest.raises(DataError, match=r"line 1: the image .a\.png. is in train and in eval"):
        read_listed({"train": flat / "train", "eval": flat / "eval"}, flat / "all.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,cat\nx.png,cat\n", r"line 2: the image 'x.png' is not in"),
        ("e.png,cat\n", "lists no images in .*train"),
        ("", "lists no images"),
        ("a.png,1\nb.png,cat\n", "line 2"),
        ("a.png,1\nb.png\n", "line 2"),
        ("a.png,1,2,3\n", "3 columns of numbers"),
    ],
)
def test_malformed_tables(flat, text, message):
    (flat / "all.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_listed({"train": flat / "train", "eval": flat / "eval"}, flat / "all.csv")


def test_a_table_that_is_not_there_or_not_utf8(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_labels(tmp_path / "gone.csv")
    (tmp_path / "x.csv").write_text("a.png,1\n", encoding="utf-16")
    with pytest.raises(DataError, match="cannot read"):
        read_labels(tmp_path / "x.csv")


def test_classes_may_be_given_the_outputs_of_the_network(tmp_path):
    for i, name in enumerate(("1", "10", "2")):
        image_at(tmp_path / name / "0.png", i)
    data = load_data("imagefolder", eval=tmp_path, classes={"1": 0, "2": 1, "10": 2})
    assert (data.eval.classes, data.eval.labels.tolist(), data.eval.indexed) == (("1", "2", "10"), [0, 2, 1], False)
    data = load_data("imagefolder", eval=tmp_path, classes={"1": 5, "2": 217, "10": 3})
    assert (len(data.eval.classes), data.eval.labels.tolist(), data.eval.indexed) == (218, [5, 3, 217], True)
    for classes, message in (({"1": 0}, "no number for 2"), ({"1": 0, "2": 0, "10": 1}, "the same number")):
        with pytest.raises(DataError, match=message):
            load_data("imagefolder", eval=tmp_path, classes=classes)
    with pytest.raises(DataError, match="no class number"):
        load_data("imagefolder", eval=tmp_path, classes={"1": 0, "2": 10**12, "10": 1})


def test_broken_images_can_be_left_out(flat):
    data = load_data("imagefolder", train=flat / "train", holdout=0)
    kept = data.without({flat / "train" / "b.png"})
    assert [kept.train.where(i)[-5:] for i in range(3)] == ["a.png", "c.png", "d.png"]
    assert kept.calibration is kept.train
    with pytest.raises(DataError, match="none of the 4 train images"):
        data.without({flat / "train" / f"{name}.png" for name in "abcd"})
    assert np.array_equal(data.without(set()).train.labels, data.train.labels)
