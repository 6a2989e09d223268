"""Image sets: what is read, how it is parted, and what is said about bad input."""

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from calibration.datasets import check_classes, listing, load_data
from calibration.errors import DataError
from calibration.folder import decode, read_folder
from calibration.split import stratified


def write_image(path, colour=(200, 30, 30), size=(20, 16), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, **options)


@pytest.fixture
def folders(tmp_path):
    """train and eval with classes a and b, 5 and 2 images each, all of different colours."""
    for number, part in enumerate(("train", "eval")):
        for label, name in enumerate("ab"):
            for i in range((5, 2)[number]):
                write_image(tmp_path / part / name / f"{i}.png", (40 * i, 90 * label, 50 + 100 * number))
    return tmp_path


def test_digits_are_the_same_images_whatever_the_seed():
    one, other = load_data("digits", seed=0), load_data("digits", seed=1)
    assert one.eval.indices.tolist() == other.eval.indices.tolist()
    assert one.holdout.indices.tolist() != other.holdout.indices.tolist()
    assert set(np.bincount(one.eval.labels)) <= {43, 44, 45, 46}


def test_digits_parts_share_no_image():
    data = load_data("digits")
    parts = [{part.digest(i) for i in range(len(part))} for part in (data.train, data.holdout, data.eval)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797


def test_image_folder(folders):
    data = load_data("imagefolder", train=folders / "train", eval=folders / "eval", holdout=0.2)
    assert data.train.classes == ("a", "b")
    assert (len(data.train), len(data.holdout), len(data.eval)) == (8, 2, 4)
    assert data.calibration is data.train
    assert data.eval.image(2).getpixel((0, 0)) == (0, 90, 150)
    assert data.eval.where(2) == str(folders / "eval" / "b" / "0.png")


def test_train_may_be_absent(folders):
    data = load_data("imagefolder", eval=folders / "eval", calibration=folders / "train")
    assert data.train is None
    assert data.holdout is None
    assert len(data.calibration) == 10


def test_calibration_images_need_no_classes(folders):
    data = load_data("imagefolder", eval=folders / "eval", calibration=folders / "train" / "a")
    assert not data.calibration.labelled


def write_csv(root, rows):
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_labels_csv(tmp_path):
    write_image(tmp_path / "images" / "x.jpg")
    write_image(tmp_path / "y.jpg")
    write_csv(tmp_path, [("file", "name", "index"), ("x.jpg", "fish", 7), ("y.jpg", "dog", 2)])
    split = read_folder(tmp_path, "eval")
    assert split.labels.tolist() == [7, 2]
    check_classes(split, 1000)  # the numbers index a longer list
    with pytest.raises(DataError, match="5 outputs, the eval images have 8 classes"):
        check_classes(split, 5)


@pytest.mark.parametrize(
    "rows",
    [
        [("id", "file", "label"), (7, "x.jpg", 2)],
        [("file", "width", "height", "Class"), ("x.jpg", 20, 16, 2)],
        [("file", "width", "torchvision_index", "wnid"), ("x.jpg", 20, 2, "n01440764")],
        [("file", "row_index", "class", "class_index"), ("x.jpg", 5, "fish", 2)],
        [("file", "number"), ("x.jpg", 2)],
        [("x.jpg", 2)],
        [("id", "breed_index"), ("x", 2)],
    ],
)
def test_the_label_column_is_known_by_its_name_or_is_the_only_number(tmp_path, rows):
    write_image(tmp_path / "x.jpg")
    write_csv(tmp_path, rows)
    assert read_folder(tmp_path, "eval").labels.tolist() == [2]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("name", "label"), ("dog", 3)], "no file column"),
        ([("name", "label")], "lists no images"),
        ([("file", "label")], "lists no images"),
        ([("file", "name", "sort"), ("x.jpg", "dog", "pet")], "no column of classes"),
        ([("file", "width", "n"), ("x.jpg", 20, 2)], r"2 columns of numbers \(width, n\), none named as the label"),
        ([("file", "label", "width"), ("x.jpg", "", 20)], "line 2: 'file' is 'x.jpg' and 'label' is ''"),
        ([("file", "label"), ("x.jpg", 1), ("x.jpg", "dog")], "line 3: 'file' is 'x.jpg' and 'label' is 'dog'"),
        ([("file", "label"), ("gone.jpg", 1)], "line 2: the image 'gone.jpg' is not in"),
    ],
)
def test_malformed_labels_csv(tmp_path, rows, message):
    write_image(tmp_path / "x.jpg")
    write_csv(tmp_path, rows)
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path, "eval")


def test_folder_errors(tmp_path):
    with pytest.raises(DataError, match="no folder") as error:
        read_folder(tmp_path / "gone", "train")
    assert "data.train" in error.value.remedy
    with pytest.raises(DataError, match="has no images"):
        read_folder(tmp_path, "train")
    write_image(tmp_path / "loose.png")
    with pytest.raises(DataError, match="1 images but no class folders"):
        read_folder(tmp_path, "train")
    write_image(tmp_path / "full" / "x.png")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(DataError, match=r"1 class folders without images \(hollow\)"):
        read_folder(tmp_path, "train")
    (tmp_path / "hollow" / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png: it is empty"):
        read_folder(tmp_path, "train").image(1)


def test_different_classes(folders):
    (folders / "eval" / "b").rename(folders / "eval" / "c")
    with pytest.raises(DataError, match="only in train: b; only in eval: c"):
        load_data("imagefolder", train=folders / "train", eval=folders / "eval")


def test_a_damaged_image_is_named(folders):
    path = folders / "train" / "a" / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    split = read_folder(folders / "train", "train")
    with pytest.raises(DataError, match=r"cannot read the image .*0\.png"):
        split.image(0)


def test_a_text_file_that_says_it_is_an_image_is_named(tmp_path):
    (tmp_path / "x.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"x\.jpg"):
        decode(tmp_path / "x.jpg")


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("P", "png"), ("RGBA", "png"), ("LA", "png"), ("CMYK", "jpg"), ("1", "png")]
)
def test_every_mode_becomes_rgb(tmp_path, mode, suffix):
    write_image(tmp_path / f"x.{suffix}", (255, 255, 255), mode=mode)
    image = decode(tmp_path / f"x.{suffix}")
    assert image.mode == "RGB"
    assert min(image.getpixel((3, 3))) > 250


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    write_image(tmp_path / "x.jpg", size=(20, 16), exif=exif)
    assert decode(tmp_path / "x.jpg").size == (16, 20)


def test_kinds_that_cannot_be_opened(tmp_path, folders):
    with pytest.raises(DataError, match="unknown kind"):
        load_data("imagenet")
    with pytest.raises(DataError, match="no folder is given"):
        load_data("imagefolder")
    with pytest.raises(DataError, match="reads no folder"):
        load_data("digits", train=tmp_path)
    with pytest.raises(DataError, match="no intact CIFAR-10") as error:
        load_data("cifar10", train=tmp_path / "cifar")
    assert "data.download=true" in error.value.remedy


def test_cifar10_may_be_folders(folders):
    data = load_data("cifar10", train=folders / "train", eval=folders / "eval", holdout=0)
    assert len(data.train) == 10
    assert data.holdout is None


def test_cifar10_from_its_own_files(tmp_path, monkeypatch):
    """Real parsing of files in CIFAR-10's format; only the checksums of the real ones are let pass."""
    import pickle

    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        (root / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1, 0, 1]}))
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": ["plane", "car"]}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = load_data("cifar10", train=tmp_path)
    assert len(data.train) + len(data.holdout) == 20
    assert data.eval.classes == ("plane", "car")
    assert data.eval.image(1).getpixel((2, 0)) == tuple(int(pixels[1, 1024 * c + 2]) for c in range(3))


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.floats(0, 0.9), st.integers(0, 3))
def test_stratified_parts(labels, share, seed):
    labels = np.array(labels)
    rest, back = stratified(labels, share, seed)
    assert sorted([*rest, *back]) == list(range(len(labels)))
    for label in set(labels):
        size, kept = (labels == label).sum(), (labels[back] == label).sum()
        assert abs(kept - share * size) <= 1
        assert kept < size


@pytest.mark.parametrize("number", ["1700000000", "100000", "9" * 5000, "20240131123000123456789"])
def test_a_number_that_is_no_class_is_refused(folders, number):
    write_csv(folders / "train", [("file", "label"), ("a/0.png", "0"), ("a/1.png", number)])
    with pytest.raises(DataError, match=r"labels\.csv, line 3"):
        read_folder(folders / "train", "train")


@pytest.mark.parametrize("name", ["x" * 5000 + ".png", "a\0b.png", "a"])
def test_a_file_name_that_cannot_be_is_refused(folders, name):
    write_csv(folders / "train", [("file", "label"), (name, "0")])
    with pytest.raises(DataError, match=r"labels\.csv"):
        read_folder(folders / "train", "train")


@pytest.mark.parametrize(
    ("link", "target"), [("a/up", ".."), ("a/same", "."), ("root", "."), ("above", "../.."), ("a/x", "/")]
)
def test_a_link_that_leads_back_is_refused(folders, link, target):
    (folders / "train" / link).symlink_to(target)
    for look in (lambda: read_folder(folders / "train", "train"), lambda: listing(folders / "train")):
        with pytest.raises(DataError, match=rf"symbolic link .*{link} leads back to"):
            look()


def test_two_links_that_lead_to_one_another_are_refused(folders):
    (folders / "train" / "a" / "other").symlink_to("../b")
    (folders / "train" / "b" / "other").symlink_to("../a")
    with pytest.raises(DataError, match="leads back to"):
        read_folder(folders / "train", "train")


def test_other_links_are_followed_and_a_folder_counts_once(folders):
    for name in ("more", "again"):
        (folders / "train" / "a" / name).symlink_to("../../eval/a")
    (folders / "train" / "b" / "one.png").symlink_to("../../eval/b/0.png")
    assert np.bincount(read_folder(folders / "train", "train").labels).tolist() == [7, 6]
    assert listing(folders / "train") != listing(folders / "eval")


def test_a_link_to_nothing_is_named(folders):
    (folders / "train" / "a" / "gone.png").symlink_to("nowhere.png")
    split = read_folder(folders / "train", "train")
    with pytest.raises(DataError, match=r"gone\.png: .* a broken link"):
        split.image(5)
