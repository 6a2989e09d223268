"""Tables of labels: CSV files with a column of file names and a column of class numbers or class names."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.errors import DataError
from calibration.names import readable_names
from calibration.split import MOST_CLASSES

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MOST_BYTES = 1 << 28
_FILE_COLUMNS = ("file", "filename", "file_name", "image", "path", "image_path", "image_id", "id")  # by preference
_LABEL_COLUMNS = ("label", "class", "class_index", "target", "category")
_LAYOUT = "write one line an image: its file name, a comma, and its class"


@dataclass(frozen=True, eq=False)
class Labels:
    """The rows of a table.

    Attributes:
        lines: line number of each row, for messages.
        files: (N,) the images, as they are written.
        labels: (N,) int64.
        classes: the name of each label.
        indexed: the labels are class numbers of a list that may be longer than ``classes``.
    """

    path: Path
    lines: tuple[int, ...]
    files: tuple[str, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    indexed: bool


def read_labels(table: Path) -> Labels:
    """Read a CSV file with commas, semicolons or tabs; the header may be absent if there are two columns.

    If the classes are whole numbers, they are class numbers from 0. Otherwise they are names, and are numbered in
    alphabetical order.

    Raises:
        DataError: the file cannot be read, or a line is malformed.
    """
    rows = _rows(table)
    header = _header(rows[0][1])
    body = rows[1:] if header else rows
    if not body:
        raise DataError(f"{table} lists no images", remedy=_LAYOUT)
    columns = header or [f"column {number}" for number in range(1, len(body[0][1]) + 1)]
    first = dict(zip(columns, [*body[0][1], *[""] * len(columns)], strict=False))
    file = _file_column(table, first, named=bool(header))
    label = _label_column(table, {column: text for column, text in first.items() if column != file})
    numbers = _is_index(first[label])
    at, of = columns.index(file), columns.index(label)
    lines, files, texts = [], [], []
    for line, cells in body:
        name, text = (cells[i].strip() if i < len(cells) else "" for i in (at, of))
        if not name or not (_is_index(text) if numbers else text):
            raise DataError(
                f"{table}, line {line}: {_brief(file)} is {_brief(name)} and {_brief(label)} is {_brief(text)}",
                remedy=f"every line needs a file name and a {'class number from 0' if numbers else 'class'}",
            )
        if numbers and int(text) >= MOST_CLASSES:
            raise DataError(
                f"{table}, line {line}: '{label}' is {text}, which is no class number",
                remedy=f"class numbers go from 0 to {MOST_CLASSES - 1}; name the column that holds them 'label'",
            )
        lines.append(line)
        files.append(name)
        texts.append(text)
    names = sorted(set(texts))
    number_of = {text: int(text) if numbers else i for i, text in enumerate(names)}
    labels = np.array([number_of[text] for text in texts], dtype=np.int64)
    classes = tuple(map(str, range(labels.max() + 1))) if numbers else readable_names(names)
    return Labels(table, tuple(lines), tuple(files), labels, classes, numbers)


def _rows(table: Path) -> list[tuple[int, list[str]]]:
    """The lines that are not blank, with their numbers; at least one."""
    try:
        if not table.is_file():
            raise OSError("it is not a regular file" if table.exists() else "there is no such file")
        if table.stat().st_size > MOST_BYTES:
            raise DataError(f"{table} is larger than {MOST_BYTES >> 20} MiB, too large for a list of images")
        with table.open(newline="", encoding="utf-8-sig") as file:
            start = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=start.count))
            rows = [(reader.line_num, cells) for cells in reader if any(cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {table}: {error}", remedy=f"{_LAYOUT}, in UTF-8") from None
    if not rows:
        raise DataError(f"{table} lists no images", remedy=_LAYOUT)
    return rows


def _header(cells: Sequence[str]) -> list[str]:
    """The names of the columns; empty if the first line is not a header."""
    known = {*_FILE_COLUMNS, *_LABEL_COLUMNS}
    is_header = any(cell.strip().lower() in known for cell in cells)
    return [cell.strip() for cell in cells] if is_header and not any(map(_is_image, cells)) else []


def _file_column(table: Path, first: dict[str, str], *, named: bool) -> str:
    by_name = {column.lower(): column for column in reversed(first)}
    found = [by_name[name] for name in _FILE_COLUMNS if name in by_name]
    found += [column for column, text in first.items() if _is_image(text)]
    if not found and not named:
        return next(iter(first))
    if not found:
        raise DataError(
            f"{table} has no file column among {_brief(list(first))}", remedy="name one column 'file' in its header"
        )
    return found[0]


def _label_column(table: Path, first: dict[str, str]) -> str:
    """The column of classes: numbers are preferred to names, then a known name of the column; or it is the only one."""
    by_name = {column.lower(): column for column in reversed(first)}
    known = [by_name[name] for name in _LABEL_COLUMNS if name in by_name]
    numbers = [column for column, text in first.items() if _is_index(text)]
    indices = [column for column in numbers if column.lower().endswith("index")]
    for found in ([column for column in known if column in numbers], known, indices, numbers, list(first)):
        if len(found) == 1 or (found and found[0] in known):
            return found[0]
        if found is numbers and len(numbers) > 1:
            shown = f"{len(numbers)} columns of numbers ({', '.join(numbers)})"
            raise DataError(f"{table} has {shown}, none named as the label", remedy="name one of them 'label'")
    raise DataError(f"{table} has no column of classes among {_brief(list(first))}", remedy="name one column 'label'")


def _is_image(text: str) -> bool:
    return text.strip().lower().endswith(SUFFIXES)


def _is_index(text: str) -> bool:
    return text.strip().isdecimal() and len(text.strip()) <= 18


def _brief(value: object) -> str:
    """Shorten a cell for a message: a cell of a damaged table may be as long as the file."""
    return f"{value!r:.100}"
