"""How image files of every sort are read, and that those that are not whole are found."""

import io

import numpy as np
import pytest
from PIL import Image

from calibration.decode import decode, fault_of
from calibration.errors import DataError

RAMP = np.linspace(0, 1, 256).reshape(16, 16)


def values(path):
    return np.asarray(decode(path))[..., 0]


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_16_bit_grey_is_scaled_to_the_range_of_8_bit(tmp_path, name):
    Image.fromarray(np.round(RAMP * 65535).astype(np.uint16)).save(tmp_path / name)
    assert np.array_equal(values(tmp_path / name), np.round(RAMP * 255))


def test_16_bit_of_the_other_byte_order(tmp_path):
    Image.fromarray(np.round(RAMP * 65535).astype(">u2")).save(tmp_path / "x.tif")
    assert np.array_equal(values(tmp_path / "x.tif"), np.round(RAMP * 255))


def test_float_pixels_are_read_as_0_to_1(tmp_path):
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "x.tif")
    assert np.array_equal(values(tmp_path / "x.tif"), np.round(RAMP * 255))


@pytest.mark.parametrize(
    ("pixels", "what"),
    [
        (RAMP.astype(np.float32) * 255, "float values from 0 to 255"),
        (RAMP.astype(np.float32) - 0.5, "float values from -0.5 to 0.5"),
        (RAMP.astype(np.float32) * np.nan, "float values from nan"),
        ((RAMP * 255).astype(np.int32), "32-bit whole numbers"),
    ],
)
def test_pixels_of_an_unknown_range_are_refused(tmp_path, pixels, what):
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=what):
        decode(tmp_path / "x.tif")
    assert what in fault_of(tmp_path / "x.tif")


def test_a_rotated_16_bit_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.full((8, 20), 65535, np.uint16)).save(tmp_path / "x.png", exif=exif)
    assert values(tmp_path / "x.png").shape == (20, 8)
    assert values(tmp_path / "x.png").min() == 255


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_kept_if_it_is_asked_for(tmp_path, mode):
    image = Image.new("RGBA", (4, 4), (200, 200, 200, 0)).convert(mode)
    image.save(tmp_path / "x.png", **({"transparency": 0} if mode == "P" else {}))
    assert decode(tmp_path / "x.png").mode == "RGB"
    assert decode(tmp_path / "x.png", alpha=True).getpixel((1, 1)) == (200, 200, 200, 0)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 95, "subsampling": 0}])
def test_a_jpeg_that_lacks_its_end_is_found(tmp_path, options):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(pixels).resize((270, 180)).save(whole, "JPEG", **options)
    path = tmp_path / "x.jpg"
    path.write_bytes(whole.getvalue())
    assert fault_of(path) == ""
    for missing in (1, 2, 3, 100, len(whole.getvalue()) // 2):
        path.write_bytes(whole.getvalue()[:-missing])
        assert "truncated" in fault_of(path)


@pytest.mark.parametrize("suffix", ["png", "gif", "bmp", "tif", "webp"])
def test_other_files_that_lack_half_are_found(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray((RAMP * 255).astype(np.uint8)).convert("RGB").resize((64, 64)).save(path)
    assert fault_of(path) == ""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert fault_of(path)


def test_what_is_no_image_at_all(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "link.jpg").symlink_to("nowhere")
    (tmp_path / "text.jpg").write_text("text")
    (tmp_path / "folder.jpg").mkdir()
    found = {name: fault_of(tmp_path / f"{name}.jpg") for name in ("empty", "link", "text", "folder", "gone")}
    assert "0 bytes" in found["empty"]
    assert "broken link" in found["link"]
    assert "not an image" in found["text"]
    assert "not a regular file" in found["folder"]
    assert "no such file" in found["gone"]
