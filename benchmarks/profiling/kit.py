"""A kit: a folder of pieces and a script that times them, here in a subprocess or on another device."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_core import from_json

from benchmarks.profiling import guest
from benchmarks.profiling.pieces import Built
from benchmarks.profiling.survey import Piece, Survey, rungs
from benchmarks.timing.devices import on_gpu
from benchmarks.timing.machine import RTX_LIBRARIES, installed
from calibration.children import tied
from compress.config import TargetConfig
from compress.engines.saturation import probe
from compress.errors import ConfigError, EngineError
from compress.files import write_atomic, write_json
from compress.parse import Count, Positive, Size, parse, read, read_bytes
from compress.prune.latency.table import Member, Ms, SegmentKind

_PACKAGES = {"tensorrt": "the Python package tensorrt", "tensorrt-rtx": "TensorRT for RTX (see below)"}
SCRIPT, DESCRIBED, RESULTS, README = "measure.py", "manifest.json", "results.jsonl", "README.txt"
PROBE = "probe.onnx"

_README = """\
Latency profiling kit of resnet-compress: {count} files, target {target}, engine {engine}, {threads} thread(s).

On the device, with Python 3.8 or later, numpy and {package}:

    python3 measure.py

It takes some minutes and prints its progress; if it is stopped, run it again and it continues. Run nothing else on the
device meanwhile, and fix its clocks if possible (Jetson: nvpmodel, jetson_clocks). Then copy results.jsonl into the
kit's folder on the machine where the kit was made, and run there

    python -m benchmarks.latency_table --config FILE --import-kit FOLDER
"""
_OF_PLANS = """\

The files are plans. They run on GPUs of compute capability {capabilities}, with version {version} of TensorRT for RTX
and no other. NVIDIA's package is tensorrt-rtx, from https://pypi.nvidia.com. The kit was made with

    pip install {packages}
"""


@dataclass(frozen=True)
class Effort:
    """How long a file is timed: in ``rounds`` rounds of at least ``round_s`` seconds."""

    rounds: int = 16
    round_s: float = 0.012


NORMAL, FAST = Effort(), Effort(4, 0.003)


def write_manifest(folder: Path, manifest: GuestManifest) -> None:
    """Write ``manifest.json``, which the script on the device reads; ``read_manifest`` reads a kit's."""
    write_json(folder / DESCRIBED, asdict(manifest))


def emit(folder: Path, manifest: KitManifest) -> None:
    """Write the script, the manifest and the README."""
    shutil.copyfile(guest.__file__, folder / SCRIPT)
    if not on_gpu(manifest.engine):
        write_atomic(folder / PROBE, probe())
    text = _README.format(
        count=len(manifest.files),
        target=manifest.target,
        engine=manifest.engine,
        threads=manifest.threads,
        package=_PACKAGES.get(manifest.engine, manifest.engine),
    )
    if manifest.built is not None:
        packages = [f"{name}=={version}" for name, version in installed(RTX_LIBRARIES).items()]
        needed = {"version": manifest.built.version, "capabilities": ", ".join(manifest.built.capabilities)}
        text += _OF_PLANS.format(**needed, packages=" ".join(packages))
    write_atomic(folder / README, text)
    write_manifest(folder, manifest)


@dataclass(frozen=True)
class GuestManifest:
    """The part of ``manifest.json`` that the script on the device reads.

    Attributes:
        engine, threads: the engine and its intra-op threads.
        rounds, round_s: how long each file is timed; see ``Effort``.
        files: names of the files, without the suffix, the reference first.
        evict: bytes to read before each run of a file, so that its weights are not in the cache.
        built: what the plans need; None if the files are ONNX files.
    """

    engine: str
    threads: Size
    rounds: Size
    round_s: Positive
    files: tuple[str, ...]
    evict: Mapping[str, Count]
    built: Built | None = field(default=None, kw_only=True)

    @classmethod
    def of(cls, target: TargetConfig, pieces: Sequence[Piece], weights: int, effort: Effort) -> GuestManifest:
        """
        Args:
            pieces: the first is the reference.
            weights: bytes of the dense network's constants.
        """
        evict = {piece.name: weights for piece in pieces if piece.role != "network"}
        files = tuple(piece.name for piece in pieces)
        return cls(target.engine, target.threads, effort.rounds, effort.round_s, files, evict, built=Built.of(target))


@dataclass(frozen=True)
class KitManifest(GuestManifest):
    """``manifest.json`` of a kit: what the script on the device reads, and what the import needs.

    Attributes:
        pieces: the contents of each file, without the reference's.
        network: ``fingerprint`` of the network.
        target, batch: of the configuration that the kit was made with.
        groups, unit: units of each coupling group, and channels a unit.
        kinds, segments: see ``compress.prune.latency.table``.
    """

    pieces: tuple[Piece, ...]
    network: str
    target: str
    batch: Size
    groups: Mapping[str, Size]
    unit: Mapping[str, Size]
    kinds: tuple[SegmentKind, ...]
    segments: tuple[Member, ...]

    @classmethod
    def of_kit(cls, survey: Survey, target: TargetConfig, pieces: Sequence[Piece], effort: Effort) -> KitManifest:
        """
        Args:
            pieces: the first is the reference.
        """
        return cls(
            **vars(GuestManifest.of(target, pieces, survey.weights, effort)),
            pieces=tuple(pieces[1:]),
            network=survey.network,
            target=target.name,
            batch=target.batch,
            groups=survey.groups,
            unit=survey.unit,
            kinds=tuple(survey.kinds.values()),
            segments=tuple(survey.members),
        )

    def __post_init__(self) -> None:
        axes = {kind.name: len(kind.units) for kind in self.kinds}
        for piece in self.pieces:
            if piece.role == "segment" and len(piece.units) != axes.get(piece.subject):
                raise ValueError(f"the piece '{piece.name}' is of no kind, or has other groups than its kind")
            if not piece.units.keys() <= self.groups.keys() or self.groups.keys() != self.unit.keys():
                raise ValueError(f"the piece '{piece.name}' has groups that the network does not have")
            if piece.role == "ends" and len(piece.shapes) != 1:
                raise ValueError(f"the piece '{piece.name}' is the ends of {len(piece.shapes)} tensors, not of one")
        self._check_segments()

    def _check_segments(self) -> None:
        """Check that there are pieces for every row of the table."""
        order, segments = self._order(), {member.name for member in self.segments}
        for member in self.segments:
            kind = next((kind for kind in self.kinds if kind.name == member.kind), None)
            if kind is None or kind.units != tuple(self.groups.get(group, 0) for group in member.groups):
                raise ValueError(f"the segment '{member.name}' does not fit its kind")
        sizes = {piece.shapes[0][2:] for piece in self.pieces if piece.role == "ends"}
        measured = set()
        for piece in self.pieces:
            if piece.role == "segment":
                if piece.units.keys() != set(order.get(piece.subject, ())) or not sizes >= {
                    s[2:] for s in piece.shapes
                }:
                    raise ValueError(f"the piece '{piece.name}' has other groups than its kind, or no ends were timed")
                measured.add((piece.subject, tuple(piece.units[group] for group in order[piece.subject])))
            if any(len(shape) < 2 for shape in piece.shapes) or not segments.issuperset(piece.removed):
                raise ValueError(f"the piece '{piece.name}' has tensors without channels, or lacks unknown blocks")
        for kind in self.kinds:
            if missing := [units for units in rungs(kind) if (kind.name, units) not in measured]:
                raise ValueError(f"there is no piece of '{kind.name}' with {missing[0]} units")

    def _order(self) -> dict[str, tuple[str, ...]]:
        """By segment type, the groups of its axes in the segment that was measured."""
        return {member.kind: member.groups for member in self.segments if member.name == member.kind}

    def in_order(self) -> KitManifest:
        """The same manifest with each segment's units in the order of its type's axes: JSON may lose the order."""
        order = self._order()
        pieces = (
            replace(piece, units={group: piece.units[group] for group in order[piece.subject]})
            if piece.role == "segment"
            else piece
            for piece in self.pieces
        )
        return replace(self, pieces=tuple(pieces))


@dataclass(frozen=True)
class Ran:
    """The machine on which the script ran; see ``compress.prune.latency.table.Machine``."""

    version: str
    device: str
    machine: str
    pair_sums: str


Rounds = Annotated[tuple[tuple[Ms, Ms], ...], Field(min_length=1)]


@dataclass(frozen=True)
class Timed:
    """A row of ``results.jsonl``: minimum and median of each round, in ms, of a file and of the reference."""

    name: str
    rounds: Rounds
    reference: Rounds
    place: Ran


def read_manifest(folder: Path) -> KitManifest:
    """The manifest of a kit.

    Raises:
        ConfigError: the folder is not a kit of this version.
    """
    path, remedy = folder / DESCRIBED, "give the folder that --emit-kit made"
    if not path.is_file():
        raise ConfigError(f"{folder} is not a latency table kit: it has no {DESCRIBED}", remedy=remedy)
    return read(path, KitManifest, remedy=remedy, error=ConfigError).in_order()


def results(folder: Path) -> list[Timed]:
    """The rows of ``results.jsonl`` so far; a line that was cut by a kill is left out.

    Raises:
        ConfigError: a line is JSON, but not a row of results.
    """
    path = folder / RESULTS
    if not path.exists():
        return []
    remedy = "delete the line, and run the kit's script again: it measures what is missing"
    rows = []
    for number, line in enumerate(read_bytes(path, remedy=remedy, error=ConfigError).splitlines(), start=1):
        try:
            from_json(line)
        except ValueError:
            continue
        rows.append(parse(line, Timed, f"{path}, line {number}", remedy=remedy, error=ConfigError))
    return rows


def run_guest(folder: Path) -> Iterator[int]:
    """Run the script on a folder in a subprocess; yield the number of files that are done.

    Raises:
        EngineError: the script failed; the message has its error.
    """
    command = [sys.executable, "-P", guest.__file__, str(folder)]  # -P: do not import modules from the script's folder
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=tied(os.getpid())
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            for line in process.stdout:
                yield int(line.partition("/")[0])
            said = process.stderr.read().strip().splitlines()
        finally:
            if process.poll() is None and sys.exc_info()[0] is not None:
                process.terminate()
    if process.returncode:
        raise EngineError(f"timing failed: {said[-1] if said else f'exit code {process.returncode}'}")
