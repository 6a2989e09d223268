"""The sidecar, the JSON file beside an engine file ``<engine>.json``: what it was built from, and where it may run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compress.engines.base import engine_files
from compress.engines.metadata import Metadata
from compress.errors import EngineError
from compress.files import file_sha256, write_json
from compress.parse import Size, read


@dataclass(frozen=True)
class Sidecar:
    """The record of an engine file.

    Attributes:
        sha256: of the engine file; see ``engine_sha256``.
        parent, parent_sha256: the exported ONNX file that it was built from.
        engine, version: the runtime that built it.
        device: ``cpu``, the name of the GPU, or the GPUs that a plan was compiled for.
        threads, batch: what it was built for.
        shapes: per input ``[least, best, most]`` shapes (engines with shape profiles).
        operators: how often each operator occurs in the optimized graph (``domain.Type``).
        layers: how the layers of a plan compute: what the parser has read (``tensorrt.network.Parsed.counts``) and what
            TensorRT has chosen (``tensorrt.layers.Layers``).
        options: the backend's own settings that it was built with.
        metadata: the file's ``compress.*`` properties; empty for a file of another program.
    """

    sha256: str
    parent: str
    parent_sha256: str
    engine: str
    version: str
    device: str
    threads: Size
    batch: Size
    shapes: Mapping[str, list[list[int]]] = field(default_factory=dict)
    operators: Mapping[str, int] = field(default_factory=dict)
    layers: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


def sidecar_path(engine: Path) -> Path:
    """
    >>> sidecar_path(Path("build/resnet18_int8.plan")).name
    'resnet18_int8.plan.json'
    """
    return engine.with_name(engine.name + ".json")


def engine_sha256(path: Path) -> str:
    """SHA-256 of an engine file, with its weights if they are in a second file: ``cat x.xml x.bin | sha256sum``."""
    digest = hashlib.sha256()
    for file in engine_files(path):
        with file.open("rb") as opened:
            while part := opened.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def write_sidecar(path: Path, source: Path, metadata: Metadata | None, /, **facts: Any) -> Sidecar:
    """Hash an engine file and its parent, and write the sidecar; ``facts`` are the remaining fields of ``Sidecar``."""
    record = Sidecar(
        sha256=engine_sha256(path),
        parent=source.name,
        parent_sha256=file_sha256(source),
        metadata={} if metadata is None else metadata.to_props(),
        **facts,
    )
    write_json(sidecar_path(path), asdict(record))
    return record


def read_sidecar(engine: Path) -> Sidecar | None:
    """The sidecar of an engine file; None if there is none.

    Raises:
        EngineError: the file is not a sidecar.
    """
    path = sidecar_path(engine)
    if not path.exists():
        return None
    remedy = "build the engine again; or delete it, and pass --trust if you know where the engine comes from"
    return read(path, Sidecar, remedy=remedy, error=EngineError)


def vouched(engine: Path, /, **facts: str) -> Sidecar:
    """The sidecar of an engine that may be loaded: it exists, its hash matches the file, and ``facts`` match.

    A plan that was built ``version_compatible`` also matches a later version, and one that was built
    ``hardware_compatible`` also another device.

    Args:
        facts: fields of ``Sidecar``, with their values on this machine.

    Raises:
        EngineError: the sidecar is missing or does not match.
    """
    record = read_sidecar(engine)
    remedy = "build it on this machine with `python -m compress build`, or pass --trust if you know where it comes from"
    if record is None:
        raise EngineError(f"{engine} has no sidecar {sidecar_path(engine).name}", remedy=remedy)
    if record.sha256 != engine_sha256(engine):
        raise EngineError(f"{engine} does not match its sidecar: the SHA-256 differs", remedy=remedy)
    for key, value in facts.items():
        if not _fits(record, key, value):
            raise EngineError(f"{engine} was built for {key} {getattr(record, key)}, not {value}", remedy=remedy)
    return record


def _fits(record: Sidecar, key: str, value: str) -> bool:
    built = getattr(record, key)
    if key == "version" and record.options.get("version_compatible"):
        return _numbers(built) <= _numbers(value)
    if key == "device" and record.options.get("hardware_compatible"):
        return True  # TensorRT itself checks the architecture
    return bool(built == value)


def _numbers(version: str) -> tuple[int, ...]:
    """
    >>> _numbers("10.0.1") < _numbers("10.13.3.9")
    True
    """
    return tuple(int(number) for number in re.findall(r"\d+", version))
