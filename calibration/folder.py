"""Images on disk: one folder per class, or a ``labels.csv`` beside the images."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import file_digest
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from calibration.errors import DataError
from calibration.names import readable_names
from calibration.split import Split

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
LABELS = "labels.csv"
MOST_BYTES = 1 << 28  # of labels.csv
MOST_CLASSES = 100_000  # the whole of ImageNet has 21,841
_FILE_COLUMNS = ("file", "filename", "image", "path")
_LABEL_COLUMNS = ("label", "class", "class_index", "target")  # in order of preference
_LAYOUT = f"put the images into one folder per class, or give a {LABELS} with the columns file,label"


@dataclass(frozen=True, eq=False)
class FileSource:
    """Image files, decoded when they are read; each file is hashed at most once."""

    paths: Sequence[Path]
    _digests: dict[int, str] = field(default_factory=dict, repr=False)

    def image(self, i: int) -> Image.Image:
        return decode(self.paths[i])

    def digest(self, i: int) -> str:
        if i not in self._digests:
            self._digests[i] = self._hashed(i)
        return self._digests[i]

    def _hashed(self, i: int) -> str:
        try:
            with self.paths[i].open("rb") as file:
                return file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"cannot read the image {self.paths[i]}: {error.strerror}") from None

    def where(self, i: int) -> str:
        return str(self.paths[i])


def decode(path: Path) -> Image.Image:
    """Read one image as upright RGB: EXIF rotation applied, palettes, grey and CMYK converted, alpha dropped.

    Raises:
        DataError: the file is missing, truncated or not an image.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is not a regular file")  # opening a pipe would wait for a writer
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if "transparency" in upright.info:  # a palette with alpha converts without a warning only through RGBA
                upright = upright.convert("RGBA")
            return upright.convert("RGB")
    except Exception as error:  # on damaged files decoders raise nearly any exception
        raise DataError(
            f"cannot read the image {path}: {error}", remedy="replace the file or remove it from the data"
        ) from None


def read_folder(root: Path, name: str, *, flat: bool = False) -> Split:
    """Read ``root/CLASS/**/*.jpg``, or ``root/labels.csv`` with the images under ``root`` or ``root/images``.

    This function reads only names and sizes; a damaged image raises its error when it is decoded.

    Args:
        name: name of the split, for messages.
        flat: accept images that lie directly in ``root``, as one class (calibration needs no labels).

    Raises:
        DataError: there is no such folder or no images, a class has no images, a file is empty, or ``labels.csv`` is
            malformed.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root} for the {name} images", remedy=f"set data.{name} to an existing folder")
    if (root / LABELS).is_file():
        return _read_csv(root, name)
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        loose = sorted(_images(root))
        if loose and flat:
            return Split(name, ("all",), np.zeros(len(loose), np.int64), FileSource(loose), np.arange(len(loose)))
        held = f"{len(loose)} images but no class folders" if loose else "no images"
        raise DataError(f"{root} has {held}", remedy=_LAYOUT)
    members = [sorted(_images(folder, root)) for folder in folders]
    empty = [folder.name for folder, files in zip(folders, members, strict=True) if not files]
    if empty:
        known = " ".join(SUFFIXES)
        raise DataError(
            f"{root} has {len(empty)} class folders without images ({', '.join(empty[:3])})",
            remedy=f"remove them or put images into them; accepted file names: {known}",
        )
    paths = [path for files in members for path in files]
    labels = np.repeat(np.arange(len(folders)), [len(files) for files in members])
    classes = readable_names(folder.name for folder in folders)
    return Split(name, classes, labels, FileSource(paths), np.arange(len(paths)))


def has_class_folders(root: Path) -> bool:
    """Whether ``root`` has a layout that ``read_folder`` can read."""
    if (root / LABELS).is_file() or not root.is_dir():
        return (root / LABELS).is_file()
    return any(any(_images(folder, root)) for folder in root.iterdir() if folder.is_dir())


def files_below(folder: Path, *, root: Path | None = None) -> Iterator[Path]:
    """Yield every file below a folder, following links: first the folder's own files by name, then its subfolders.

    A folder that several links lead to is read once.

    Args:
        root: the folder that ``folder`` is a part of, if it is not the whole.

    Raises:
        DataError: a folder cannot be read, or a link leads back to a folder that contains it, so that the same files
            would be read again and again.
    """
    above = folder.resolve().parents if root is None else (root.resolve(), *root.resolve().parents)
    waiting, seen = [(folder, frozenset(map(_identity, above)))], set[tuple[int, int]]()
    while waiting:
        here, around = waiting.pop()
        if (identity := _identity(here)) in around:
            raise DataError(
                f"the symbolic link {here} leads back to {here.resolve()}, which it lies in: the images would be "
                "counted again and again",
                remedy="remove the link",
            )
        if identity in seen:
            continue
        seen.add(identity)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"cannot read the folder {here}: {error.strerror}") from None
        yield from (Path(entry.path) for entry in entries if not _is_folder(entry))
        waiting += [(Path(entry.path), around | {identity}) for entry in reversed(entries) if _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _identity(folder: Path) -> tuple[int, int]:
    try:
        found = folder.stat()
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from None
    return found.st_dev, found.st_ino


def _images(folder: Path, root: Path | None = None) -> Iterator[Path]:
    for path in files_below(folder, root=root):
        if path.name.lower().endswith(SUFFIXES) and not path.name.startswith("."):
            if not path.is_file():
                raise DataError(f"the image {path} is not a file, or is a broken link", remedy="remove it")
            if path.stat().st_size == 0:
                raise DataError(f"the image {path} is empty (0 bytes)", remedy="replace the file or remove it")
            yield path


def _read_csv(root: Path, name: str) -> Split:
    table = root / LABELS
    if table.stat().st_size > MOST_BYTES:
        raise DataError(
            f"{table} is larger than {MOST_BYTES >> 20} MiB, too large for a list of images", remedy=_LAYOUT
        )
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {table}: {error}", remedy=_LAYOUT) from None
    files = next((column for column in columns if column.strip().lower() in _FILE_COLUMNS), None)
    if files is None:
        raise DataError(
            f"{table} has no file column among {_brief(columns)}", remedy="name one column 'file' in its header"
        )
    if not rows:
        raise DataError(f"{table} lists no images", remedy=_LAYOUT)
    label = _label_column(table, {column: rows[0][column] for column in columns if column != files})
    bases = (root, root / "images")
    paths, labels = [], []
    for line, row in enumerate(rows, start=2):
        if not row[files] or not _is_index(row[label]):
            raise DataError(
                f"{table}, line {line}: {_brief(files)} is {_brief(row[files])} and {_brief(label)} is "
                f"{_brief(row[label])}",
                remedy="every line needs a file name and a class number from 0",
            )
        number, path = int(row[label]), _found(bases, row[files])
        if number >= MOST_CLASSES:
            raise DataError(
                f"{table}, line {line}: '{label}' is {number}, which is no class number",
                remedy=f"class numbers go from 0 to {MOST_CLASSES - 1}; name the column that holds them 'label'",
            )
        if path is None:
            raise DataError(f"{table}, line {line}: no image {_brief(row[files])} in {root} or {root / 'images'}")
        paths.append(path)
        labels.append(number)
    classes = tuple(str(i) for i in range(max(labels) + 1))
    return Split(name, classes, np.array(labels, dtype=np.int64), FileSource(paths), np.arange(len(paths)), True)


def _label_column(table: Path, first: dict[str, str | None]) -> str:
    """The column of class numbers, found by its name; else the only column with a number in the first line."""
    numbers = {column.strip().lower(): column for column, text in first.items() if _is_index(text)}
    named = [numbers[name] for name in _LABEL_COLUMNS if name in numbers]
    if named:
        return named[0]
    indices = [column for name, column in numbers.items() if name.endswith("index")]
    if len(indices) == 1:
        return indices[0]
    wanted = "add a column 'label' of class numbers from 0"
    for column, text in first.items():
        if column.strip().lower() in _LABEL_COLUMNS:  # the user named this column, so no other one is tried
            raise DataError(f"{table}: '{column}' holds {_brief(text)}, not a class number", remedy=wanted)
    if not numbers:
        raise DataError(f"{table} has no column of class numbers among {_brief(list(first))}", remedy=wanted)
    if len(numbers) > 1:
        found = f"{len(numbers)} columns of numbers ({', '.join(numbers.values())})"
        raise DataError(f"{table} has {found}, none named as the label", remedy="name one of them 'label'")
    return next(iter(numbers.values()))


def _brief(value: object) -> str:
    """Shorten a cell for a message: a cell of a damaged table may be as long as the file."""
    return f"{value!r:.100}"


def _is_index(text: str | None) -> bool:
    return text is not None and text.strip().isdecimal() and len(text.strip()) <= 18


def _found(bases: Sequence[Path], name: str) -> Path | None:
    """The first file of that name; None if there is none, or if no file can have that name."""
    try:
        return next((path for base in bases if (path := base / name).is_file()), None)
    except (OSError, ValueError):
        return None
