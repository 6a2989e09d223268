"""Transforms, batches and the calibration sample."""

import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from calibration.datasets import load_data
from calibration.errors import DataError
from calibration.loader import batches
from calibration.preprocess import Preprocess
from calibration.sampler import calibration_sample
from calibration.split import ArraySource
from calibration.transforms import eval_transform, train_transform


def coloured(labels, seed=0):
    """One random 8x8 image a label."""
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
    return ArraySource("random", pixels).split("train", "abcde", labels)


PLAIN = Preprocess(size=8, mean=(0.0,) * 3, std=(1.0,) * 3)


def test_eval_transform_normalises():
    p = Preprocess(size=8, mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    x = eval_transform(p)(Image.new("RGB", (8, 8), (255, 0, 51)))
    assert x[:, 0, 0].tolist() == pytest.approx([1.0, -0.25, 0.1])


def test_eval_transform_resizes_the_shorter_side_and_crops_the_centre():
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (10, 0, 30, 20))  # the middle 20 columns
    x = eval_transform(Preprocess(size=8, resize=10, mean=(0.0,) * 3, std=(1.0,) * 3))(image)
    assert x.shape == (3, 8, 8)
    assert x.min() == 1


def test_grey_input():
    p = Preprocess(size=8, mean=(0.0,), std=(1.0,), channels=1)
    assert eval_transform(p)(Image.new("RGB", (8, 8))).shape == (1, 8, 8)


def test_an_image_below_the_input_size_is_not_padded_in_silence():
    with pytest.raises(DataError, match="8x6 is smaller than the network's input of 8"):
        eval_transform(PLAIN)(Image.new("RGB", (8, 6)))


def test_training_crop_shifts_by_its_share_at_most():
    image = Image.new("RGB", (8, 8))
    image.putpixel((4, 4), (255, 255, 255))
    transform = train_transform(PLAIN, crop=0.25, flip=False, jitter=0.0)
    torch.manual_seed(0)
    places = {tuple(torch.nonzero(transform(image)[0])[0].tolist()) for _ in range(300)}
    assert places == {(y, x) for y in range(2, 7) for x in range(2, 7)}


def test_no_augmentation_is_the_eval_transform():
    image = coloured([0]).image(0)
    transform = train_transform(PLAIN, crop=0.0, flip=False, jitter=0.0)
    assert torch.equal(transform(image), eval_transform(PLAIN)(image))


def test_flip_and_jitter():
    image = coloured([0]).image(0)
    plain = eval_transform(PLAIN)(image)
    torch.manual_seed(0)
    flips = [train_transform(PLAIN, crop=0.0, flip=True, jitter=0.0)(image) for _ in range(20)]
    assert {torch.equal(x, plain) for x in flips} == {torch.equal(x, plain.flip(2)) for x in flips} == {True, False}
    assert not torch.equal(train_transform(PLAIN, crop=0.0, flip=False, jitter=0.5)(image), plain)


def collect(loader):
    pairs = list(loader)
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def test_batches_are_the_same_for_any_number_of_workers():
    split = coloured([0, 1, 2, 3, 4] * 4)
    augment = train_transform(PLAIN, crop=0.25, flip=True, jitter=0.3)
    one, two = (collect(batches(split, augment, 6, shuffle=True, seed=3, workers=w)) for w in (0, 2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    other = collect(batches(split, augment, 6, shuffle=True, seed=4))
    assert not torch.equal(one[1], other[1])


def test_batches_leave_the_global_generator_alone():
    split = coloured([0, 1])
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    collect(batches(split, train_transform(PLAIN, crop=0.25, flip=True, jitter=0.1), 2, shuffle=True))
    assert torch.equal(torch.rand(3), expected)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(1, 8), st.booleans(), st.integers(1, 3))
def test_processes_share_each_batch(count, size, drop_last, world):
    split = coloured(list(np.arange(count) % 5))
    whole = list(batches(split, eval_transform(PLAIN), size * world, shuffle=True, seed=1, drop_last=drop_last))
    assert len(whole) == (count // (size * world) if drop_last else -(-count // (size * world)))
    parts = [
        batches(
            split, eval_transform(PLAIN), size * world, shuffle=True, seed=1, drop_last=True, rank=rank, world=world
        )
        for rank in range(world)
    ]
    for (x, _), *shares in zip(whole, *parts, strict=False):
        together = torch.empty_like(x)
        for rank, (share, _) in enumerate(shares):
            together[rank::world] = share
        assert torch.equal(together, x)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_ends_the_loop_with_its_name(tmp_path, workers):
    for name in ("a/0.png", "a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "a/1.png").write_bytes(b"no image")
    split = load_data("imagefolder", train=tmp_path, holdout=0.0).train
    with pytest.raises(DataError, match=r"cannot read the image .*1\.png") as error:
        collect(batches(split, eval_transform(PLAIN), 1, workers=workers))
    assert "Traceback" not in str(error.value)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(0, 2), st.data())
def test_calibration_sample_is_balanced_and_nested(labels, seed, data):
    split = coloured(labels)
    count = data.draw(st.integers(0, len(labels)))
    chosen = calibration_sample(split, count, seed=seed)
    assert len(set(chosen)) == count
    assert chosen == calibration_sample(split, len(labels), seed=seed)[:count]
    taken, there = (np.bincount(list(found), minlength=5) for found in (split.labels[list(chosen)], labels))
    unfinished = taken[taken < there]
    assert unfinished.size == 0 or taken.max() - unfinished.min() <= 1


def test_calibration_sample_follows_the_seed():
    split = coloured([0, 1, 2] * 20)
    samples = [calibration_sample(split, 9, seed=seed) for seed in (0, 0, 1)]
    assert samples[0] == samples[1] != samples[2]


def test_calibration_never_sees_evaluation_images():
    split = coloured([0, 1, 2, 3])
    with pytest.raises(DataError, match=r"calibration image random\[2\] is also evaluation image random\[2\]"):
        calibration_sample(split, 4, seed=0, exclude=split.subset([2], "eval"))
    calibration_sample(split, 4, seed=0, exclude=coloured([0, 1], seed=1))


def test_calibration_sample_of_too_few_images():
    with pytest.raises(DataError, match="5 calibration images asked for, but 'train' has 2"):
        calibration_sample(coloured([0, 1]), 5, seed=0)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_is_killed_is_told_with_a_remedy(workers, capfd):
    loader = batches(coloured([0] * 40), eval_transform(PLAIN), 1, workers=workers)
    steps = iter(loader)
    next(steps)
    multiprocessing.active_children()[0].kill()
    with pytest.raises(DataError, match=r"worker process that reads images was killed") as error:
        list(steps)
    assert "set data.workers to a smaller number" in str(error.value)
    assert "Traceback" not in capfd.readouterr().err
    assert len(list(loader)) == 40


def test_another_child_that_is_killed_is_not_taken_for_a_worker():
    loader = batches(coloured([0] * 4), eval_transform(PLAIN), 1, workers=1)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        for _ in loader:
            other.kill()
    assert other.returncode == -9
