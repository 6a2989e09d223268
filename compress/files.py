"""Hash files, and write them atomically; a written file survives a power cut."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from calibration.names import readable
from compress.errors import ConfigError

MANIFEST = "stage.json"

_SURROGATE = re.compile("[\ud800-\udfff]")

_written: ContextVar[dict[Path, str] | None] = ContextVar("written", default=None)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_sha256(path: Path) -> str:
    """SHA-256 of a file, or over the names and contents of the files in a stage's folder (except its manifest)."""
    if path.is_file():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != MANIFEST:
            digest.update(os.fsencode(file.relative_to(path)) + f"\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()


def beside(path: Path) -> Path:
    """An unpredictable hidden name beside ``path``: process ids of two containers can be the same.

    >>> beside(Path("a/x.json")) != beside(Path("a/x.json")), beside(Path("a/x.json")).name[:8]
    (True, '.x.json.')
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write ``data`` beside ``path`` and rename it: a reader sees either the old file or the complete new one.

    If somebody has put a link where the temporary file goes, it is not followed: the file must be new.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, content = beside(path), data.encode() if isinstance(data, str) else data
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:  # the error of a full disk does not name the file
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if (written := _written.get()) is not None:
        written[path] = hashlib.sha256(content).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomic(path, to_json(value, sort_keys=True) + "\n")


def to_json(value: Any, *, sort_keys: bool = False) -> str:
    r"""``value`` as indented JSON that every parser reads; the bytes of a file name that is not UTF-8 are escaped.

    >>> print(to_json(["a\udce9"]))
    [
      "a\\xe9"
    ]
    """
    text = json.dumps(value, indent=2, sort_keys=sort_keys, default=str, ensure_ascii=False)
    return _SURROGATE.sub(lambda found: json.dumps(readable(found[0]))[1:-1], text)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, if the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A hidden folder that takes ``folder``'s place when the block ends well, and vanishes when it does not.

    Raises:
        ConfigError: ``folder`` is the current one: the shell that is in it would keep the old one, which is deleted.
    """
    if folder.resolve() == Path.cwd().resolve():
        raise ConfigError(f"{folder} is the current folder", remedy="give the name of another one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(folder)
    temporary.mkdir()
    try:
        yield temporary
        old = beside(folder)
        old = old.with_name(f"{old.name}.old")
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def discard(path: Path) -> None:
    """Delete a file that ``write_atomic`` has written and that is no longer wanted."""
    path.unlink()
    if (written := _written.get()) is not None:
        written.pop(path, None)


@contextmanager
def writing() -> Iterator[dict[Path, str]]:
    """Collect what ``write_atomic`` writes in the block: the SHA-256 of the intended content of each file."""
    written: dict[Path, str] = {}
    token = _written.set(written)
    try:
        yield written
    finally:
        _written.reset(token)
