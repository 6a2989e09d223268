"""Find the images that cannot be read before anything depends on them; images that are known to be whole cost nothing.

What is known is kept in a file: one number an image, made of its path, its size and the time of its last change.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.decode import fault_of
from calibration.folder import FileSource
from calibration.split import Split

Stamps = NDArray[np.uint64]
_CHUNK = 4096  # images that are handed to the threads at once


def files_of(splits: Iterable[Split]) -> list[Path]:
    """The files of the images of several splits, each once; none of images in memory."""
    sources = ((split.source, split.indices) for split in splits)
    paths = (source.paths[i] for source, indices in sources if isinstance(source, FileSource) for i in indices)
    return list(dict.fromkeys(paths))


def faults(paths: Sequence[Path], threads: int | None = None) -> Iterator[str]:
    """For each file in turn, why it cannot be read as an image; empty if it can. Decoders run in parallel.

    Args:
        threads: default: one for each processor.
    """
    with warnings.catch_warnings():  # of odd metadata, for which the user can do nothing
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:  # decoders release the GIL
            for start in range(0, len(paths), _CHUNK):
                yield from pool.map(fault_of, paths[start : start + _CHUNK])


def stamps(paths: Iterable[Path]) -> Stamps:
    """(N,) a number for each file, which changes with its path, size and time of change; 0 if there is no such file."""
    return np.fromiter(map(_stamp, paths), np.uint64)


def _stamp(path: Path) -> int:
    try:
        found = path.stat()
    except OSError:
        return 0
    text = os.fsencode(path.absolute()) + f"\0{found.st_size}\0{found.st_mtime_ns}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


def read_known(file: Path) -> Stamps:
    """The stamps in a file that ``to_bytes`` filled; none if it is absent or damaged."""
    try:
        known = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return np.empty(0, np.uint64)
    return known if known.dtype == np.uint64 and known.ndim == 1 else np.empty(0, np.uint64)


def to_bytes(known: Stamps) -> bytes:
    """The content of a file for ``read_known``."""
    buffer = io.BytesIO()
    np.save(buffer, known)
    return buffer.getvalue()
