"""Identify a measured file by path, hash, size and parents."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results.base import Artifact
from compress.engines.base import engine_files
from compress.engines.sidecar import engine_sha256, read_sidecar


def artifact(path: Path) -> Artifact:
    """Path, hash, size and parents of a file."""
    sidecar = read_sidecar(path)
    return Artifact(
        path=str(path),
        sha256=engine_sha256(path),
        bytes=sum(file.stat().st_size for file in engine_files(path)),
        parents={} if sidecar is None else {sidecar.parent: sidecar.parent_sha256},
    )
