"""Images on disk: one folder per class, a table of labels, or images without labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import file_digest
from pathlib import Path

import numpy as np
from PIL import Image

from calibration.decode import decode
from calibration.errors import DataError
from calibration.labels import SUFFIXES, Labels, read_labels
from calibration.names import readable_names
from calibration.split import Split

__all__ = ["SUFFIXES", "FileSource", "decode", "files_below", "has_class_folders", "read_folder", "read_listed"]

LABELS = "labels.csv"
# Folders that systems leave among images: of an archive from a Mac, a Synology or Windows, or of a file system.
_LEFT_BY_SYSTEMS = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found")
_PARTS = {"train", "training", "val", "valid", "validation", "test", "eval"}
_LAYOUT = f"put the images into one folder per class, or list them in data.labels or in a {LABELS} beside them"


@dataclass(frozen=True, eq=False)
class FileSource:
    """Image files, decoded when they are read; each file is hashed at most once."""

    paths: Sequence[Path]
    _digests: dict[int, str] = field(default_factory=dict, repr=False)

    def image(self, i: int) -> Image.Image:
        return decode(self.paths[i], alpha=True)

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


def read_folder(root: Path, name: str, *, flat: bool = False) -> Split:
    """Read ``root/CLASS/**/*.jpg``, or ``root/labels.csv`` with the images under ``root`` or ``root/images``.

    Hidden files and folders, and those that systems leave among images, are not read. This function reads only names;
    a damaged image raises its error when it is decoded.

    Args:
        name: name of the split, for messages.
        flat: accept images that lie directly in ``root``, as a split without labels.

    Raises:
        DataError: there is no such folder or no images, a class has no images, or ``labels.csv`` is malformed.
    """
    _check_there(root, name)
    if (root / LABELS).is_file():
        return read_listed({name: root}, root / LABELS)[name]
    folders = sorted((path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name)), key=os.fsencode)
    if not folders:
        loose = list(_images(root))
        if loose and flat:
            return Split(name, (), np.zeros(len(loose), np.int64), FileSource(loose), np.arange(len(loose)))
        held = f"{len(loose)} images but no class folders" if loose else "no images"
        raise DataError(f"{root} has {held}", remedy=_LAYOUT)
    if {folder.name.lower() for folder in folders} <= _PARTS:
        found = ", ".join(folder.name for folder in folders)
        raise DataError(
            f"{root} has the folders {found}: these are parts of a data set, not classes",
            remedy=f"give the part itself, such as data.{name}={folders[0]}",
        )
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


def read_listed(roots: Mapping[str, Path], table: Path) -> dict[str, Split]:
    """The images in each folder that ``table`` lists; see ``read_labels``.

    A file name is looked up in each folder, in its subfolder ``images``, and from the table's own folder. It may lack
    its suffix.

    Args:
        roots: folders of images, by the name of the split.

    Raises:
        DataError: an image is in none of the folders or in several, or a folder has no images that are listed.
    """
    for name, root in roots.items():
        _check_there(root, name)
    listed = read_labels(table)
    inside = {name: root.resolve() for name, root in roots.items()}
    found: dict[str, list[tuple[Path, int]]] = {name: [] for name in roots}
    for line, file, label in zip(listed.lines, listed.files, listed.labels.tolist(), strict=True):
        here = {name: path for name, root in roots.items() if (path := _found((root, root / "images"), file))}
        if not here and (path := _found((table.parent,), file)):
            here = {name: path for name, root in inside.items() if path.resolve().is_relative_to(root)}
        if len(here) != 1:
            where = f"in {' and in '.join(here)}" if here else f"not in {' or '.join(map(str, roots.values()))}"
            raise DataError(
                f"{table}, line {line}: the image {file!r:.100} is {where}",
                remedy="write its path from one of these folders, or from the table's own",
            )
        [(name, path)] = here.items()
        found[name].append((path, label))
    return {name: _listed_split(name, rows, listed, roots[name]) for name, rows in found.items()}


def _listed_split(name: str, rows: Sequence[tuple[Path, int]], listed: Labels, root: Path) -> Split:
    if not rows:
        raise DataError(f"{listed.path} lists no images in {root}", remedy=f"check data.{name}")
    labels = np.array([label for _, label in rows], dtype=np.int64)
    source = FileSource([path for path, _ in rows])
    return Split(name, listed.classes, labels, source, np.arange(len(rows)), listed.indexed)


def has_class_folders(root: Path) -> bool:
    """Whether ``root`` has a layout that ``read_folder`` can read."""
    if (root / LABELS).is_file() or not root.is_dir():
        return (root / LABELS).is_file()
    folders = (folder for folder in root.iterdir() if folder.is_dir() and not is_hidden(folder.name))
    return any(any(True for _ in _images(folder, root)) for folder in folders)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is not part of the data.

    >>> is_hidden(".ipynb_checkpoints"), is_hidden("__MACOSX"), is_hidden("n01440764")
    (True, True, False)
    """
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


def files_below(folder: Path, *, root: Path | None = None) -> Iterator[Path]:
    """Yield every file below a folder, following links: first the folder's own files by name, then its subfolders.

    Hidden files and folders are left out. A folder that several links lead to is read once.

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
            with os.scandir(here) as found:
                entries = sorted((entry for entry in found if not is_hidden(entry.name)), key=lambda entry: entry.name)
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
    return (path for path in files_below(folder, root=root) if path.name.lower().endswith(SUFFIXES))


def _check_there(root: Path, name: str) -> None:
    if not root.is_dir():
        raise DataError(f"no folder {root} for the {name} images", remedy=f"set data.{name} to an existing folder")


def _found(bases: Sequence[Path], name: str) -> Path | None:
    """The first image of that name; None if there is none, or if no file can have that name."""
    names = (name,) if name.lower().endswith(SUFFIXES) else tuple(name + suffix for suffix in SUFFIXES)
    try:
        return next((path for base in bases for one in names if (path := base / one).is_file()), None)
    except (OSError, ValueError):
        return None
