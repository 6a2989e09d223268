"""A folder's programs make of an image what the harness makes of it, in Python and in C++."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.deployment.device import predict as device
from benchmarks.deployment.folder import described
from calibration.decode import decode
from calibration.preprocess import Interpolation, Preprocess, Sides
from calibration.transforms import eval_transform

CPP = Path(device.__file__).parent / "cpp"
INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "bilinear", "bicubic")
MEAN, STD = (0.485, 0.456, 0.406, 0.5), (0.229, 0.224, 0.225, 0.25)
ROUNDING = 2  # of 255: without antialias PyTorch rounds in its own ways

sides = st.integers(3, 40)


@st.composite
def cases(draw: st.DrawFn, channels: tuple[int, ...] = (1, 3, 4)) -> tuple[Preprocess, Image.Image]:
    """A preprocessing, and an image that is large enough for it."""
    height, width, count = draw(sides), draw(sides), draw(st.sampled_from(channels))
    resize: Sides = draw(
        st.one_of(
            st.just(0),
            st.integers(max(height, width), 60),
            st.tuples(st.integers(height, 60), st.integers(width, 60)),
        )
    )
    p = Preprocess(
        size=(height, width),
        resize=resize,
        mean=MEAN[:count],
        std=STD[:count],
        channels=count,
        interpolation=draw(st.sampled_from(INTERPOLATIONS)),
        antialias=draw(st.booleans()),
        channel_order=draw(st.sampled_from(("rgb", "bgr"))),
    )
    least = (height, width) if resize == 0 else (1, 1)
    shape = (least[0] + draw(st.integers(0, 90)), least[1] + draw(st.integers(0, 90)))
    depth = draw(st.sampled_from((3, 4))) if count == 4 else 3
    pixels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (*shape, depth), dtype=np.uint8)
    return p, Image.fromarray(pixels)


def grey_levels(p: Preprocess, a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of two inputs, in 1/255."""
    return float(np.abs((a - b) * np.array(p.std, np.float32)[:, None, None]).max() * 255)


def exact(p: Preprocess) -> bool:
    return p.antialias or p.resize == 0


@given(cases())
@settings(deadline=None, max_examples=150)
def test_python_prepares_images_as_the_harness_does(case: tuple[Preprocess, Image.Image]) -> None:
    p, image = case
    ours, theirs = eval_transform(p)(image).numpy(), device.preprocess(image, described(p))
    assert theirs.dtype == ours.dtype
    if exact(p):
        np.testing.assert_array_equal(theirs, ours)
    else:
        assert grey_levels(p, theirs, ours) < ROUNDING + 0.01


@pytest.fixture(scope="module")
def tensor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that writes what preprocess.cpp makes of an image."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    out = tmp_path_factory.mktemp("cpp") / "tensor"
    sources = [str(Path(__file__).with_name("tensor.cpp")), str(CPP / "preprocess.cpp")]
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{CPP}"]
    subprocess.run([compiler, *flags, *sources, "-o", str(out)], check=True)
    return out


@given(cases(channels=(1, 3)))
@settings(deadline=None, max_examples=60)
def test_cpp_prepares_images_as_python_does(tensor: Path, case: tuple[Preprocess, Image.Image]) -> None:
    p, image = case
    how, file = described(p), tensor.with_suffix(".ppm")
    image.save(file)
    resize = how["resize"] or {"height": 0, "width": 0}
    size = (resize["shorter_side"], 0) if "shorter_side" in resize else (resize["height"], resize["width"])
    numbers = (*p.shape, *size, INTERPOLATIONS.index(p.interpolation), p.antialias, p.channel_order == "bgr")
    command = [str(tensor), str(file), *(str(int(number)) for number in numbers)]
    written = subprocess.run(command, capture_output=True, check=True).stdout
    found = np.frombuffer(written, np.float32).reshape(p.shape)
    theirs = device.preprocess(image, how)
    if exact(p):
        np.testing.assert_array_equal(found, theirs)
    else:
        assert grey_levels(p, found, theirs) < 1.01


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_python_decodes_as_the_harness_does(tmp_path: Path, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    file = tmp_path / ("image.tiff" if mode in ("CMYK", "F") else "image.png")
    if mode == "I;16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257 + 3).save(file)
    elif mode == "F":
        Image.fromarray(pixels[..., 0] / np.float32(255)).save(file)
    else:
        Image.fromarray(pixels).convert(mode).save(file)
    found, ours = device.decode(file), decode(file, alpha=True)
    assert found.mode == ours.mode
    np.testing.assert_array_equal(np.asarray(found), np.asarray(ours))


def test_an_image_that_lies_on_its_side_is_turned(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    found = device.decode(tmp_path / "turned.png")
    assert found.size == (4, 5)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(decode(tmp_path / "turned.png")))
