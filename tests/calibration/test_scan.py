"""Every image is read once, and what is known to be whole is kept."""

import os

import numpy as np
from PIL import Image

from calibration.datasets import load_data
from calibration.folder import read_folder
from calibration.scan import faults, files_of, read_known, stamps, to_bytes


def images(folder, count):
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, i, i)).save(path)
    return files_of([read_folder(folder, "train")])


def test_faults_come_in_the_order_of_the_files(tmp_path):
    paths = images(tmp_path, 20)
    for i in (3, 11):
        paths[i].write_bytes(paths[i].read_bytes()[:50])
    found = list(faults(paths, threads=4))
    assert [i for i, fault in enumerate(found) if fault] == [3, 11]


def test_each_file_counts_once_and_images_in_memory_not_at_all(tmp_path):
    images(tmp_path, 10)
    assert len(files_of(load_data("imagefolder", train=tmp_path, eval=tmp_path).splits)) == 10
    assert files_of(load_data("digits").splits) == []


def test_a_stamp_changes_with_the_file(tmp_path):
    paths = images(tmp_path, 4)
    before = stamps(paths)
    paths[0].write_bytes(b"another size")
    os.utime(paths[1], ns=(1, 1))
    paths[2].rename(paths[2].with_name("moved.png"))
    assert (stamps(paths) != before).tolist() == [True, True, True, False]


def test_what_is_known_is_kept(tmp_path):
    file = tmp_path / "known.npy"
    assert len(read_known(file)) == 0
    file.write_bytes(to_bytes(np.array([1, 2**64 - 1], np.uint64)))
    assert read_known(file).tolist() == [1, 2**64 - 1]
    for damaged in (b"", b"text", to_bytes(np.zeros(3, np.uint64))[:-5], to_bytes(np.zeros((2, 2), np.uint64))):
        file.write_bytes(damaged)
        assert len(read_known(file)) == 0
