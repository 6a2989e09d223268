"""Find the images that a command line names: files, folders and patterns."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

from calibration.folder import SUFFIXES, files_below
from compress.errors import DataError


def image_files(words: Iterable[str]) -> Iterator[Path | DataError]:
    """Each image file, in the order given; in its place an error where a word leads to none.

    Args:
        words: image files, folders (searched with their subfolders), or patterns such as ``photos/*.jpg``.
    """
    for word in words:
        path = Path(word)
        try:
            if path.is_dir():
                files = [file for file in files_below(path) if file.name.lower().endswith(SUFFIXES)]
                missing = f"there are no images in {word}"
            elif glob.has_magic(word) and not path.exists():
                names = glob.glob(word, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
                files = [Path(name) for name in sorted(names)]
                missing = f"no file matches {word}"
            else:
                files, missing = [path], ""  # that it is missing is found when it is read
        except DataError as error:
            yield error
            continue
        if files:
            yield from files
        else:
            yield DataError(missing, remedy=f"accepted file names: {' '.join(SUFFIXES)}")
