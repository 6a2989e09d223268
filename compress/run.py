"""The run folder: every stage reads and writes files in ``runs/<name>/<stage>/``.

A stage's output is made in a hidden folder and renamed when it is complete, so after a kill at any moment there is
either the old output or the new one. ``stage.json`` holds the output's key (a hash of the stage's settings, its
parents' contents and the library versions) and the SHA-256 of every file. A stage with the same key is not run again,
and a file that has changed since it was written is not read. A lock keeps two processes, also of two containers or
hosts, from running the same stage at once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compress import __version__
from compress.errors import PipelineError
from compress.files import MANIFEST, file_sha256, sync_folder, tree_sha256, whole, write_json, writing
from compress.lock import locked
from compress.parse import Finite, read
from compress.progress import SILENT, Progress

STAGES = ("baseline", "prune", "finetune", "quantize", "sensitivity", "export", "build")  # in order
_VERSIONED = ("torch", "torchvision", "nncf", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Manifest:
    """``stage.json``: the record that a stage writes.

    Attributes:
        stage: its name.
        key: hash that the output is valid for; see the module's docstring.
        settings: everything in the configuration that the output depends on.
        parents: SHA-256 (``tree_sha256``) by path of what it was made from.
        versions: of this package and the libraries.
        outputs: SHA-256 of each file, by its path in the folder.
        seconds: that the stage took.
    """

    stage: str
    key: str
    settings: Mapping[str, Any]
    parents: Mapping[str, str]
    versions: Mapping[str, str]
    outputs: Mapping[str, str]
    seconds: Finite

    def __post_init__(self) -> None:
        for name in self.outputs:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"the output '{name}' is not in the stage's folder")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a stage's folder.

    Raises:
        PipelineError: it is absent or damaged.
    """
    return read(folder / MANIFEST, Manifest, remedy=_again(folder))


def verify(folder: Path) -> Manifest:
    """Read the manifest of a stage's folder, after checking every file against it.

    Raises:
        PipelineError: a file is missing or its SHA-256 differs, or the manifest is absent or damaged.
    """
    manifest = read_manifest(folder)
    for name, digest in manifest.outputs.items():
        path = folder / name
        if not path.is_file():
            raise PipelineError(f"{path} is gone, though stage '{folder.name}' has written it", remedy=_again(folder))
        if file_sha256(path) != digest:
            raise PipelineError(
                f"{path} is not what stage '{folder.name}' has written: its SHA-256 is another",
                remedy=f"it was damaged or changed: restore it, or {_again(folder)}",
            )
    return manifest


class Run:
    """One run's folder.

    Args:
        directory: ``runs/<name>``; created when the first stage writes.
        force: run every stage again, even if its output is up to date.
    """

    def __init__(self, directory: Path, *, force: bool = False, progress: Progress = SILENT) -> None:
        self.directory = directory
        self.force = force
        self.progress = progress

    def folder(self, stage: str) -> Path:
        """Where ``stage`` puts its output."""
        return self.directory / stage

    def need(self, stage: str) -> Path:
        """The folder of a stage that must have run, each of its files as it was written.

        Raises:
            PipelineError: it has not run, or a file is damaged.
        """
        folder = self.folder(stage)
        if not folder.exists() and _replaced(folder):
            with self._alone(stage) as alone:
                if alone:
                    _recover(folder)
        if not (folder / MANIFEST).exists():
            raise PipelineError(
                f"stage '{stage}' has not run in {self.directory}", remedy=f"python -m compress {stage} first"
            )
        verify(folder)
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

        Where another process is making it, this one waits for it.

        Args:
            work: writes the output into ``out``. What it leaves in ``scratch`` survives a kill and is there when the
                same stage is asked for again with the same key, so that a long job can go on where it stopped.
            settings: everything in the configuration that the output depends on.
            parents: files and stage folders that it is made from.

        Returns:
            the stage's folder, whole.

        Raises:
            PipelineError: a parent has changed, or an output was taken away, while the stage was running.
        """
        digests = {path: tree_sha256(path) for path in parents}
        key = _key(name, settings, digests.values())
        if self._is_due(name, key):
            with self._alone(name) as alone:
                if alone:
                    _recover(self.folder(name))
                if self._is_due(name, key):  # nobody has made it meanwhile
                    self._make(name, key, work, settings, digests)
                    return self.folder(name)
        self.progress.note(f"{name}: up to date ({self.folder(name)})")
        return self.folder(name)

    def _is_due(self, name: str, key: str) -> bool:
        folder = self.folder(name)
        if self.force or not _is_whole(folder, key):
            return True
        with suppress(OSError):  # on a disk that cannot be written, make will ask again
            (folder / MANIFEST).touch()  # newer than its parents, for make
        return False

    def _make(
        self,
        name: str,
        key: str,
        work: Callable[[Path, Path], None],
        settings: Mapping[str, Any],
        parents: Mapping[Path, str],
    ) -> None:
        folder = self.folder(name)
        self.progress.note(f"{name}: {folder}")
        started = time.monotonic()
        scratch = self.directory / ".scratch" / f"{name}-{key[:16]}"
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            with whole(folder) as temporary:
                with writing() as meant:
                    work(temporary, scratch)
                outputs = _outputs(temporary, meant)
                for path, digest in parents.items():
                    if tree_sha256(path) != digest:
                        raise PipelineError(
                            f"{path} has changed while stage '{name}' was reading it", remedy="run the stage again"
                        )
                seconds = round(time.monotonic() - started, 1)
                made_from = {str(path): digest for path, digest in parents.items()}
                record = Manifest(name, key, settings, made_from, versions(), outputs, seconds)
                write_json(temporary / MANIFEST, asdict(record))
            for old in scratch.parent.iterdir():  # of settings that were given up, too
                if re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{16}}", old.name):
                    shutil.rmtree(old, ignore_errors=True)
        finally:
            for unused in (scratch, scratch.parent):
                with suppress(OSError):  # not empty: somebody goes on from it
                    unused.rmdir()

    def _alone(self, stage: str) -> AbstractContextManager[bool]:
        """Be the only process that makes ``stage``; see ``locked``."""
        return locked(self.directory / ".locks" / stage, self.progress.note)


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that an output depends on."""
    return {"compress": __version__, **{name: importlib.metadata.version(name) for name in _VERSIONED}}


def _again(folder: Path) -> str:
    if folder.name in STAGES:
        return f"make it again: python -m compress {folder.name} --force (with the --config and --set of the run)"
    return f"delete the folder {folder}, and run again what made it"


def _key(name: str, settings: Mapping[str, Any], parents: Iterable[str]) -> str:
    parts = [name, settings, list(parents), versions()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _is_whole(folder: Path, key: str) -> bool:
    """Whether the output of ``key`` is there, every file as it was written."""
    try:
        return verify(folder).key == key
    except PipelineError:
        return False


def _outputs(folder: Path, meant: Mapping[Path, str]) -> dict[str, str]:
    """SHA-256 of what is in a new output, on the disk; all that was written must be there."""
    found = {path: file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    for path, digest in meant.items():
        if path.is_relative_to(folder) and found.get(path) != digest:
            raise PipelineError(
                f"{path.relative_to(folder)} was written, and is gone or has changed since",
                remedy="does another program clean up or write in the run's folder? run the stage again",
            )
    for path in found:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for path in {path.parent for path in found}:
        sync_folder(path)
    return {str(path.relative_to(folder)): digest for path, digest in found.items()}


def _replaced(folder: Path) -> list[Path]:
    """Outputs that were just being replaced by a new one, the latest first."""
    found = folder.parent.glob(f".{folder.name}.*.old")
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _recover(folder: Path) -> None:
    """Clean up after a kill: put back an output that was just being replaced, drop what was half made."""
    for old in _replaced(folder):
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(folder)
    for half in folder.parent.glob(f".{folder.name}.*"):
        if re.fullmatch(r"[0-9a-f]+", half.suffix[1:]):
            shutil.rmtree(half, ignore_errors=True)
