"""Run ONNX Runtime on a processor that QEMU emulates, and check which nodes it fuses and what it computes."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from benchmarks.emulation import arm_guest
from compress.engines.base import Array
from compress.engines.convolutions import check_convolutions, unquantized
from compress.engines.metadata import Metadata
from compress.engines.onnxruntime import float_convolutions, operator_counts
from compress.engines.saturation import PairSums, probe, read_probe
from compress.errors import BackendAbsent, ConfigError, EngineError
from compress.export.overflow import pairs_in_danger
from compress.export.parity import INT8_ERROR, MIXED_ERROR, Parity, compare
from compress.export.qdq import Graph
from compress.progress import SILENT, Progress
from compress.targets import profile

_TIMEOUT_S = 600
_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
_V8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_PROBE_IMAGE = np.full((1, 16, 8, 8), 255, np.float32)


@dataclass(frozen=True)
class Processor:
    """A processor that QEMU emulates.

    Attributes:
        machine: its architecture, as ``platform.machine()`` names it.
        cpuinfo: its ``/proc/cpuinfo``, if ONNX Runtime would crash on this machine's file; else empty.
    """

    machine: str
    cpuinfo: str = ""


def _arm(part: int, features: str) -> Processor:
    """An Arm core, by its part number and the features that Linux lists.

    >>> PROCESSORS["cortex-a72"].cpuinfo.splitlines()[-2]
    'CPU part\\t: 0xd08'
    """
    lines = ("processor\t: 0", f"Features\t: {features}", "CPU implementer\t: 0x41", "CPU architecture: 8")
    return Processor(
        "aarch64", "\n".join([*lines, "CPU variant\t: 0x0", f"CPU part\t: {part:#05x}", "CPU revision\t: 1", ""])
    )


PROCESSORS: Mapping[str, Processor] = {
    "Haswell": Processor("x86_64"),  # AVX2 and no VNNI
    "EPYC-Rome": Processor("x86_64"),  # AVX2 and no VNNI
    "cortex-a72": _arm(0xD08, _V8),  # no dot product, as in a Raspberry Pi 4
    "neoverse-n1": _arm(0xD0C, f"{_V8} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"),  # asimddp: dot product
}


@dataclass(frozen=True)
class Emulated:
    """The result of ONNX Runtime on one processor.

    Attributes:
        operators: number of nodes of the optimized graph, by operator.
        floats: the names of each convolution that runs in float; see ``float_convolutions``.
        pair_sums: integer type in which the processor adds two products.
        parity: its outputs compared with this machine's without optimizations.
        own: its outputs compared with this machine's engine; None for a processor of another architecture.
    """

    cpu: str
    operators: Mapping[str, int]
    floats: Sequence[Sequence[str]]
    pair_sums: PairSums
    parity: Parity
    own: Parity | None


def emulate(engine: Path, cpu: str, images: Array, root: Path | None = None) -> Emulated:
    """Run a file in ONNX Runtime on a processor that QEMU emulates.

    Args:
        cpu: a name in ``PROCESSORS``.
        images: (N, C, H, W), run one by one.
        root: a file tree with ``usr/bin/python3``, and onnxruntime installed in ``opt/site``; if it is None or of
            another architecture than the processor, this machine's own Python runs.

    Raises:
        BackendAbsent: QEMU or a Python of that architecture is not installed.
        EngineError: the emulated run failed.
    """
    qemu, tree = _qemu(PROCESSORS[cpu].machine), _tree(cpu, root)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        np.save(work / "images.npy", images)
        np.save(work / "probe.npy", _PROBE_IMAGE)
        (work / "probe.onnx").write_bytes(probe())
        _run([qemu, "-L", _sysroot(work / "root", tree, cpu), "-cpu", cpu], tree, [engine.resolve(), work], cpu)
        graph = onnx.load(work / "optimized.onnx").graph
        outputs, probed = np.load(work / "outputs.npy"), np.load(work / "probed.npy")
        share = float(np.median(probed) / np.median(_unoptimized(work / "probe.onnx", _PROBE_IMAGE)))
    sums = read_probe(share)
    if sums is None:
        raise EngineError(f"on {cpu} ONNX Runtime computes a test convolution wrong: {share:.0%} of the known sum")
    own = None
    if PROCESSORS[cpu].machine == platform.machine():
        own = compare([arm_guest.run(engine, ort.SessionOptions(), images)], [outputs])
    parity = compare([_unoptimized(engine, images)], [outputs])
    return Emulated(cpu, operator_counts(graph), float_convolutions(graph), sums, parity, own)


def _qemu(machine: str) -> str:
    names = (f"qemu-{machine}", f"qemu-{machine}-static")
    found = next((name for name in names if shutil.which(name)), None)
    if found is None:
        raise BackendAbsent(f"{' or '.join(names)} is not installed", remedy="`apt-get install qemu-user`")
    return found


def _tree(cpu: str, root: Path | None) -> Path | None:
    """The file tree with the Python for a processor; None: this machine's own Python."""
    machine, here = PROCESSORS[cpu].machine, platform.machine()
    if root is not None and _machine_of(root) == machine:
        return root.resolve()
    if machine != here:
        raise BackendAbsent(
            f"{cpu} is of architecture {machine}, this machine is {here}",
            remedy="give --root, a file tree with a Python of that architecture: docs/howto/arm.md says how to make it",
        )
    return None


def _machine_of(root: Path) -> str:
    """The architecture of a file tree, read from the ELF header of its Python."""
    python = root / "usr/bin/python3"
    machine = None
    if python.is_file() and (root / "opt/site/onnxruntime").is_dir():
        with python.open("rb") as file:
            machine = _ELF_MACHINES.get(int.from_bytes(file.read(20)[18:], "little"))
    if machine is None:
        raise BackendAbsent(
            f"{root} holds no Python for {' or '.join(_ELF_MACHINES.values())} with onnxruntime",
            remedy="make it as docs/howto/arm.md says",
        )
    return machine


def _sysroot(at: Path, tree: Path | None, cpu: str) -> Path:
    """Make the folder in which QEMU looks for files first: the tree, with the processor's ``/proc/cpuinfo``."""
    (at / "proc").mkdir(parents=True)
    if cpuinfo := PROCESSORS[cpu].cpuinfo:
        (at / "proc/cpuinfo").write_text(cpuinfo, encoding="ascii")
    for entry in tree.iterdir() if tree else ():
        if entry.name != "proc":
            (at / entry.name).symlink_to(entry)
    return at


def _run(emulator: Sequence[str | Path], tree: Path | None, arguments: Sequence[Path], cpu: str) -> None:
    """Run the emulated part in the tree's Python, or in this machine's own with the packages of this process."""
    if tree is None:
        python = Path(sys.executable).resolve()
        variables = {"PYTHONPATH": os.pathsep.join(str(Path(m.__path__[0]).parent) for m in (ort, np))}
    else:
        python = (tree / "usr/bin/python3").resolve()
        variables = {"PYTHONHOME": str(tree / "usr"), "PYTHONPATH": str(tree / "opt/site")}
    command = [str(part) for part in (*emulator, python, arm_guest.__file__, *arguments)]
    settings = {**os.environ, **variables, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise EngineError(f"the emulated run took over {_TIMEOUT_S} s", remedy="give fewer --images") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no error message"])[-1]
        raise EngineError(f"the emulated run on {cpu} failed with exit code {done.returncode}: {last}")


def _unoptimized(model: Path, images: Array) -> Array:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    result: Array = arm_guest.run(model, options, images)
    return result


def check(
    engine: Path,
    metadata: Metadata,
    cpus: Sequence[str],
    images: Array,
    root: Path | None = None,
    progress: Progress = SILENT,
) -> tuple[Emulated, ...]:
    """Emulate a file on several processors.

    Args:
        metadata: the file's metadata, which names the layers that stay in float.
        cpus, images, root: see ``emulate``.

    Raises:
        EngineError: a convolution runs in float that should not, or the outputs differ from this machine's.
        BackendAbsent: see ``emulate``.
    """
    danger = pairs_in_danger(Graph(onnx.load(engine)))
    results = []
    for cpu in cpus:
        result = emulate(engine, cpu, images, root)
        for line in _report(result, danger):
            progress.note(line)
        if metadata.precision == "int8":
            check_convolutions(engine, metadata, result.floats, _why)
        _check_outputs(result, danger)
        results.append(result)
    return tuple(results)


def _report(result: Emulated, danger: Mapping[str, int]) -> Iterator[str]:
    yield f"{result.cpu}: {', '.join(f'{number} {name}' for name, number in result.operators.items())}"
    threat = f"; {_overflow(danger) or 'no pair of weights can overflow'}" if result.pair_sums == "int16" else ""
    yield f"  adds products in {result.pair_sums}{threat}"
    yield f"  against this machine unoptimized on {result.parity}"
    if result.own is not None and result.own.max_abs == 0:
        yield "  the same as this machine's own engine, bit for bit"
    elif result.own is not None:
        yield f"  against this machine's own engine on {result.own}"


def _overflow(danger: Mapping[str, int]) -> str:
    """The number of weights that can overflow, in words; empty if none can."""
    return f"{sum(danger.values())} pairs of weights in {len(danger)} layers can overflow" if danger else ""


def _check_outputs(result: Emulated, danger: Mapping[str, int]) -> None:
    """Raise EngineError if the outputs differ from this machine's, or if they show an overflow."""
    overflows = bool(danger) and result.pair_sums == "int16"
    if not result.parity.error <= INT8_ERROR:
        wrong = result.parity
    elif overflows and result.own is not None and not result.own.error <= MIXED_ERROR:
        wrong = result.own  # all engines of an architecture compute the same integers, unless some overflow
    else:
        return
    message = f"on {result.cpu} the outputs are not this machine's ({wrong})"
    if not overflows:
        raise EngineError(message)
    raise EngineError(
        f"{message}: {_overflow(danger)} in int16, in which that processor adds products",
        remedy='set pair_sums = "int16" in the target\'s profile and quantize again, or use 7-bit weights',
    )


def _why(conv: onnx.NodeProto, graph: onnx.GraphProto) -> str:
    return unquantized(conv, graph) or "its Q/DQ are all there, but ONNX Runtime did not fuse them"


def default_cpus(root: Path | None, target: str) -> list[str]:
    """The processors that the file is made for and that this machine's Python or the file tree's can run on."""
    machines = {platform.machine()} | ({_machine_of(root)} if root else set())
    if target and (made_for := set(profile(target).machines)):
        machines &= made_for
    found = [name for name, processor in PROCESSORS.items() if processor.machine in machines]
    if not found:
        raise ConfigError(
            "no processor that the file is made for can be emulated with this machine's Python",
            remedy="give --root, a file tree with a Python of its architecture: docs/howto/arm.md says how to make it",
        )
    return found
