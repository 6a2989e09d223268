"""``python -m benchmarks.arm --engine FILE --root FOLDER``: what ONNX Runtime's ARM build makes of a file.

The aarch64 build runs on this machine under QEMU's user mode. It decides by itself what it fuses, so its optimized
graph is read: a convolution in float is an error, unless the file says that its layer is meant to be. The outputs are
held against this machine's own build with all optimizations off, once on a core with the dot-product instructions and
once on one without. Emulated times say nothing about a device and are not reported. ``docs/targets.md`` says how to
make FOLDER, the aarch64 Python.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from benchmarks import arm_guest
from benchmarks.images import preprocess_of
from benchmarks.latency import count
from benchmarks.tables import emit
from compress.cli import run_command
from compress.engines.base import Array, open_engine
from compress.engines.convolutions import check_convolutions, unquantized
from compress.engines.metadata import Metadata
from compress.engines.onnxruntime import float_convolutions, operator_counts
from compress.errors import BackendAbsent, EngineError
from compress.export.parity import INT8_ERROR, Parity, compare
from compress.progress import SILENT, Progress, Terminal

QEMU = "qemu-aarch64-static"
_TIMEOUT_S = 600
_V8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"


@dataclass(frozen=True)
class Core:
    """What Linux says about an ARM core: the part number and the features of ``/proc/cpuinfo``."""

    part: int
    features: str

    def cpuinfo(self) -> str:
        """A ``/proc/cpuinfo`` of one such core.

        >>> CORES["cortex-a72"].cpuinfo().splitlines()[-2]
        'CPU part\\t: 0xd08'
        """
        lines = ("processor\t: 0", f"Features\t: {self.features}", "CPU implementer\t: 0x41", "CPU architecture: 8")
        return "\n".join([*lines, "CPU variant\t: 0x0", f"CPU part\t: {self.part:#05x}", "CPU revision\t: 1", ""])


CORES: Mapping[str, Core] = {
    "cortex-a72": Core(0xD08, _V8),  # no dot product, as in a Raspberry Pi 4
    "neoverse-n1": Core(0xD0C, f"{_V8} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"),  # asimddp: dot product
}


@dataclass(frozen=True)
class Emulated:
    """What the ARM build did on one core.

    Attributes:
        operators: of its optimized graph.
        floats: the names of each convolution that it runs in float; see ``float_convolutions``.
        parity: its outputs against this machine's, unoptimized.
    """

    core: str
    operators: Mapping[str, int]
    floats: Sequence[Sequence[str]]
    parity: Parity


def emulate(engine: Path, root: Path, core: str, images: Array) -> Emulated:
    """Run a file in the aarch64 build of ONNX Runtime, under QEMU.

    Args:
        root: an aarch64 file tree with ``usr/bin/python3``, and onnxruntime installed in ``opt/site``.
        core: a name in ``CORES``.
        images: (N, C, H, W), run one by one.

    Raises:
        BackendAbsent: QEMU or the aarch64 Python is not there.
        EngineError: the emulated run failed.
    """
    python = root / "usr/bin/python3"
    if shutil.which(QEMU) is None:
        raise BackendAbsent(f"{QEMU} is not installed", remedy="`apt-get install qemu-user-static`")
    if not python.is_file() or not (root / "opt/site/onnxruntime").is_dir():
        raise BackendAbsent(
            f"{root} holds no aarch64 Python with onnxruntime", remedy="make it as docs/targets.md says under ort-arm"
        )
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        np.save(work / "images.npy", images)
        files = (engine.resolve(), work / "images.npy", work / "outputs.npy", work / "optimized.onnx")
        sysroot = _sysroot(root.resolve(), work / "root", CORES[core])
        variables = {"PYTHONHOME": sysroot / "usr", "PYTHONPATH": sysroot / "opt/site"}
        command = [
            QEMU,
            "-L",
            sysroot,
            "-cpu",
            core,
            *(part for name, value in variables.items() for part in ("-E", f"{name}={value}")),
        ]
        script = [python.resolve(), arm_guest.__file__, *files]
        try:
            done = subprocess.run(
                [str(part) for part in [*command, *script]], capture_output=True, text=True, timeout=_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise EngineError(f"the emulated run took over {_TIMEOUT_S} s", remedy="give fewer --images") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise EngineError(f"the emulated run on {core} ended with {done.returncode}: {last}")
        graph, outputs = onnx.load(work / "optimized.onnx").graph, np.load(work / "outputs.npy")
    parity = compare([_unoptimized(engine, images)], [outputs])
    return Emulated(core, operator_counts(graph), float_convolutions(graph), parity)


def _sysroot(root: Path, at: Path, core: Core) -> Path:
    """The tree with another ``/proc/cpuinfo``: ONNX Runtime reads it, and does not survive this machine's."""
    (at / "proc").mkdir(parents=True)
    (at / "proc/cpuinfo").write_text(core.cpuinfo(), encoding="ascii")
    for entry in root.iterdir():
        if entry.name != "proc":
            (at / entry.name).symlink_to(entry)
    return at


def _unoptimized(engine: Path, images: Array) -> Array:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    result: Array = arm_guest.run(engine, options, images)
    return result


def check(
    engine: Path, metadata: Metadata, root: Path, images: Array, progress: Progress = SILENT
) -> tuple[Emulated, ...]:
    """Emulate a file on every core.

    Args:
        metadata: the file's, which says what is meant to run in float.

    Raises:
        EngineError: a convolution runs in float that should not, or the outputs are not this machine's.
        BackendAbsent: see ``emulate``.
    """
    results = []
    for core in CORES:
        result = emulate(engine, root, core, images)
        progress.note(f"{core}: {_listed(result.operators)}")
        progress.note(f"  against this machine unoptimized on {result.parity}")
        check_convolutions(engine, metadata, result.floats, _why)
        if not result.parity.error <= INT8_ERROR:
            raise EngineError(f"on {core} the outputs are not this machine's, on {result.parity}")
        results.append(result)
    return tuple(results)


def _why(conv: onnx.NodeProto, graph: onnx.GraphProto) -> str:
    return unquantized(conv, graph) or "its Q/DQ are all there, but the ARM build did not fuse them"


def _listed(operators: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in operators.items())


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.arm", description=__doc__)
    p.add_argument("--engine", type=Path, required=True, metavar="FILE", help="exported INT8 file")
    p.add_argument("--root", type=Path, required=True, metavar="FOLDER", help="aarch64 file tree with Python in it")
    p.add_argument("--images", type=count, default=4, metavar="N", help="how many images of noise to compare on (4)")
    return p


def _command(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    with open_engine(args.engine) as engine:
        shape, metadata = preprocess_of(engine, args.engine).shape, engine.metadata
    assert metadata is not None  # it has a preprocess
    images = np.random.default_rng(0).normal(size=(args.images, *shape)).astype(np.float32)
    check(args.engine, metadata, args.root, images, Terminal())
    emit(f"{args.engine.name}: no convolution runs in float that should not, on {' or '.join(CORES)}\n", "-")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 error, 2 usage, 5 QEMU or the aarch64 Python is absent."""
    return run_command(lambda: _command(argv))


if __name__ == "__main__":
    sys.exit(main())
