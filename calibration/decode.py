"""Decode one image file, and find out whether it is whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from calibration.errors import DataError

_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_16_BIT_AS_32 = ("PNG", "PPM")  # Pillow reads their 16-bit values into 32 bits, scaled to 65535
_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_ROUNDING = 1e-3  # by which float pixels may leave 0..1


def decode(path: Path, *, alpha: bool = False) -> Image.Image:
    """Read one image, upright, as 8-bit RGB.

    EXIF orientation is applied. Palettes, grey and CMYK become RGB. 16-bit grey is divided by 257, so that 65535 is
    white. Float pixels are read as 0 (black) to 1 (white).

    Args:
        alpha: return RGBA if the image has alpha; otherwise alpha is dropped, and a transparent pixel has the colour
            that is stored for it.

    Raises:
        DataError: the file is missing, truncated or not an image, or its values have no known range.
    """
    try:
        image = _read(path)
    except Exception as error:  # on damaged files decoders raise nearly any exception
        raise DataError(
            f"cannot read the image {path}: {_reason(error)}", remedy="replace the file or remove it from the data"
        ) from None
    return image if alpha or image.mode == "RGB" else image.convert("RGB")


def fault_of(path: Path) -> str:
    """Why ``decode`` cannot read an image; empty if it can.

    All of the file is read, but a JPEG is only decoded at an eighth of its size, which takes less time.
    """
    try:
        _read(path, small=True)
    except Exception as error:
        return _reason(error)
    return ""


def _read(path: Path, *, small: bool = False) -> Image.Image:
    """RGB, or RGBA if there is alpha; a small JPEG if the size does not matter."""
    if not path.is_file():  # opening a pipe would wait for a writer
        raise OSError("it is not a regular file" if path.exists() else "there is no such file, or it is a broken link")
    if path.stat().st_size == 0:
        raise OSError("it is empty (0 bytes)")
    with Image.open(path) as image:
        if small:
            image.draft("RGB", (1, 1))  # does nothing to other formats
        return _in_8_bit(ImageOps.exif_transpose(image), image.format)  # a transposed image has no format


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own message repeats the path
        return "it is not an image, or not of a known format"
    return str(error) or type(error).__name__


def _in_8_bit(image: Image.Image, format: str | None) -> Image.Image:
    """RGB, or RGBA where there is alpha.

    Raises:
        ValueError: the range of the values is not known.
    """
    if image.mode in _16_BIT or (image.mode == "I" and format in _16_BIT_AS_32):
        return _grey(np.asarray(image) / 257)
    if image.mode == "F":
        values = np.asarray(image)
        least, most = values.min(), values.max()
        if not (least >= -_ROUNDING and most <= 1 + _ROUNDING):
            raise ValueError(
                f"its pixels are float values from {least:g} to {most:g}, and float images are read as 0..1"
            )
        return _grey(values * 255)
    if image.mode == "I":
        raise ValueError("its pixels are 32-bit whole numbers, whose range is not known: save it with 8 or 16 bits")
    if image.mode in _ALPHA or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("RGB")


def _grey(values: NDArray[np.floating]) -> Image.Image:
    """(H, W) of 0..255 -> RGB."""
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8)).convert("RGB")
