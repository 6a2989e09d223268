"""The run directory: every stage reads files and writes files in ``runs/<name>/<stage>/``.

A stage's output is made in a hidden folder beside its place and renamed into it when it is whole, so a kill at any
moment leaves either the old output or the new one. ``stage.json`` holds the key that the output answers to (a hash of
the stage's settings, its parents' contents and the library versions); asking again with the same key does nothing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from compress import __version__
from compress.errors import PipelineError
from compress.progress import SILENT, Progress

MANIFEST = "stage.json"
_VERSIONED = ("torch", "torchvision", "nncf", "onnx", "onnxruntime", "numpy")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_sha256(path: Path) -> str:
    """SHA-256 over a file, or over the names and contents of the files in a stage's folder (manifest apart)."""
    if path.is_file():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != MANIFEST:
            digest.update(f"{file.relative_to(path)}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write ``data`` beside ``path`` and rename it into place: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        temporary.replace(path)
    except OSError as error:  # a full disk does not say which file it was
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        PipelineError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PipelineError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise PipelineError(f"{path} is not JSON: {error}", remedy="delete it, and run again what made it") from None


class Run:
    """One run's folder.

    Args:
        directory: ``runs/<name>``; made when the first stage writes.
        force: run every stage anew, whatever is there.
    """

    def __init__(self, directory: Path, *, force: bool = False, progress: Progress = SILENT) -> None:
        self.directory = directory
        self.force = force
        self.progress = progress

    def folder(self, stage: str) -> Path:
        """Where ``stage`` puts its output."""
        return self.directory / stage

    def need(self, stage: str) -> Path:
        """The folder of a stage that must have run.

        Raises:
            PipelineError: it has not.
        """
        _recover(self.directory)
        folder = self.folder(stage)
        if not (folder / MANIFEST).exists():
            raise PipelineError(
                f"stage '{stage}' has not run in {self.directory}", remedy=f"python -m compress {stage} first"
            )
        return folder

    def stage(
        self,
        name: str,
        work: Callable[[Path, Path], None],
        *,
        settings: Mapping[str, Any],
        parents: Sequence[Path] = (),
    ) -> Path:
        """Make the output of stage ``name`` by ``work(out, scratch)``, unless it is there already with the same key.

        Args:
            work: writes the output into ``out``. What it leaves in ``scratch`` survives a kill and is there when the
                same stage is asked for again with the same key, so that a long job can go on where it stopped.
            settings: everything in the configuration that the output depends on.
            parents: files and stage folders that it is made from.

        Returns:
            the stage's folder, whole.
        """
        _recover(self.directory)
        folder = self.folder(name)
        key = _key(name, settings, parents)
        if not self.force and _is_whole(folder, key):
            (folder / MANIFEST).touch()  # newer than its parents, for make
            self.progress.note(f"{name}: up to date ({folder})")
            return folder
        self.progress.note(f"{name}: {folder}")
        started = time.monotonic()
        scratch = self.directory / ".scratch" / f"{name}-{key[:16]}"
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            with _whole(folder) as temporary:
                work(temporary, scratch)
                record = {
                    "stage": name,
                    "key": key,
                    "settings": settings,
                    "parents": {str(path): tree_sha256(path) for path in parents},
                    "versions": versions(),
                    "outputs": {str(p.relative_to(temporary)): file_sha256(p) for p in _files(temporary)},
                    "seconds": round(time.monotonic() - started, 1),
                }
                write_json(temporary / MANIFEST, record)
            shutil.rmtree(scratch, ignore_errors=True)
        finally:
            for unused in (scratch, scratch.parent):
                with suppress(OSError):  # not empty: somebody goes on from it
                    unused.rmdir()
        return folder


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that an output depends on."""
    return {"compress": __version__, **{name: importlib.metadata.version(name) for name in _VERSIONED}}


def _key(name: str, settings: Mapping[str, Any], parents: Sequence[Path]) -> str:
    parts = [name, settings, [tree_sha256(path) for path in parents], versions()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _is_whole(folder: Path, key: str) -> bool:
    """Whether the output of ``key`` is there, every file as it was written."""
    if not (folder / MANIFEST).exists():
        return False
    record = read_json(folder / MANIFEST)
    files = {folder / name: digest for name, digest in record.get("outputs", {}).items()}
    return record.get("key") == key and all(f.is_file() and file_sha256(f) == digest for f, digest in files.items())


def _recover(directory: Path) -> None:
    """Clean up after a kill: put back an output that was just being replaced, drop what was half made."""
    for old in directory.glob(".*.old"):
        if not (place := directory / old.name[1:-4]).exists():
            old.rename(place)
    for half in directory.glob(".*.[0-9]*"):
        if half.suffix[1:].isdecimal() and not psutil.pid_exists(int(half.suffix[1:])):
            shutil.rmtree(half, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A hidden folder that takes ``folder``'s place when the block ends well, and vanishes when it does not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
