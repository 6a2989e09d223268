"""A folder of ONNX files and one script that times them: run here as a subprocess, or carried to the device."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import kit_guest
from benchmarks.profile_plan import Piece, Survey
from compress.config import TargetConfig
from compress.engines.saturation import probe
from compress.errors import ConfigError, EngineError
from compress.export.template import Template
from compress.prune.latency_table import Kind, Layer, Member, Side
from compress.run import write_atomic, write_json

SCRIPT, MANIFEST, RESULTS, README = "measure.py", "manifest.json", "results.jsonl", "README.txt"
PROBE = "probe.onnx"

_README = """\
Latency profiling kit of resnet-compress: {count} ONNX files, target {target}, engine {engine}, {threads} thread(s).

On the device, with Python 3.8 or later, numpy and {package}:

    python3 measure.py

It takes some minutes, prints how far it is, and goes on where it stopped if it is asked again. Leave the machine
alone meanwhile, and fix its clocks if it can (Jetson: nvpmodel, jetson_clocks). Then bring results.jsonl back to
where the kit was made, into the kit's folder there, and run

    python -m benchmarks.profile --config FILE --import-kit FOLDER
"""


@dataclass(frozen=True)
class Effort:
    """How long a file is timed: in ``rounds`` rounds of at least ``round_s`` seconds."""

    rounds: int = 16
    round_s: float = 0.012


NORMAL, FAST = Effort(), Effort(4, 0.003)


def write_files(folder: Path, pieces: Iterable[Piece], build: Callable[[Piece], Template]) -> None:
    """Write the ONNX file of each piece."""
    for piece in pieces:
        write_atomic(folder / f"{piece.name}.onnx", build(piece).to_onnx().SerializeToString())


def write_manifest(
    folder: Path,
    target: TargetConfig,
    pieces: Sequence[Piece],
    weights: int,
    effort: Effort,
    described: Mapping[str, Any],
) -> None:
    """Write what the guest reads; ``described`` is for the import.

    Args:
        pieces: the first is the reference.
        weights: bytes of the dense network's constants.
    """
    evict = {piece.name: weights for piece in pieces if piece.role != "network"}
    names = [piece.name for piece in pieces]
    timing = {"engine": target.engine, "threads": target.threads, **asdict(effort)}
    manifest = {**timing, "files": names, "evict": evict, **described}
    write_json(folder / MANIFEST, manifest)


def emit(
    folder: Path,
    target: TargetConfig,
    pieces: Sequence[Piece],
    weights: int,
    effort: Effort,
    described: Mapping[str, Any],
) -> None:
    """Write the script and what explains it; the ONNX files are there already.

    Args:
        pieces, weights, effort: see ``write_manifest``.
        described: the network and its kinds; see ``describe``.
    """
    shutil.copyfile(kit_guest.__file__, folder / SCRIPT)
    write_atomic(folder / PROBE, probe())
    count, package = len(pieces), "the Python package tensorrt" if target.engine == "tensorrt" else target.engine
    text = _README.format(
        count=count, target=target.name, engine=target.engine, threads=target.threads, package=package
    )
    write_atomic(folder / README, text)
    more = {"pieces": [piece.to_json() for piece in pieces[1:]], **described}
    write_manifest(folder, target, pieces, weights, effort, more)


def describe(survey: Survey, target: TargetConfig) -> dict[str, Any]:
    """What a table says of its network, as JSON; ``read_manifest`` reads it."""
    return {
        "network": survey.network,
        "target": target.name,
        "batch": target.batch,
        "groups": survey.groups,
        "unit": survey.unit,
        "kinds": [asdict(kind) for kind in survey.kinds.values()],
        "segments": [asdict(member) for member in survey.members],
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a kit, with ``pieces``, ``kinds`` and ``segments`` as values.

    Raises:
        ConfigError: the folder is no kit of this version.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        manifest["pieces"] = [Piece.from_json(value) for value in manifest["pieces"]]
        manifest["kinds"] = [_kind(value) for value in manifest["kinds"]]
        manifest["segments"] = [Member(**{**v, "groups": tuple(v["groups"])}) for v in manifest["segments"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} is no profiling kit: {type(error).__name__}: {error}",
            remedy="give the folder that --emit-kit made, with results.jsonl in it",
        ) from None
    return manifest


def _kind(value: Mapping[str, Any]) -> Kind:
    def side(v: Mapping[str, Any]) -> Side:
        return Side(v["fixed"], tuple(v["per_unit"]))

    layers = tuple(Layer(side(layer["inputs"]), side(layer["outputs"])) for layer in value["layers"])
    return Kind(value["name"], tuple(value["units"]), tuple(value["step"]), layers)


def results(folder: Path) -> list[dict[str, Any]]:
    """The guest's rows that are there so far."""
    rows: list[dict[str, Any]] = kit_guest.read_results(folder / RESULTS)
    return rows


def run_guest(folder: Path) -> Iterator[int]:
    """Run the script on a folder in a process of its own; yields how many files are done.

    Raises:
        EngineError: it ended with an error, which the message says.
    """
    command = [sys.executable, "-P", kit_guest.__file__, str(folder)]  # -P: no module beside it is in the way
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as guest:
        try:
            assert guest.stdout is not None
            assert guest.stderr is not None
            for line in guest.stdout:
                yield int(line.partition("/")[0])
            said = guest.stderr.read().strip().splitlines()
        finally:
            if guest.poll() is None and sys.exc_info()[0] is not None:
                guest.terminate()
    if guest.returncode:
        raise EngineError(f"timing failed: {said[-1] if said else f'exit code {guest.returncode}'}")
