"""List what this machine can run and what is missing: engines, INT8 arithmetic, hardware, clock, heat, targets."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from benchmarks.timing.gpu import gpu_names
from benchmarks.timing.heat import heat
from benchmarks.timing.machine import own_processors
from compress import __version__, targets
from compress.engines.base import backend, check_machine, require_builder, version_of
from compress.engines.saturation import pair_sums
from compress.errors import BackendAbsent, PipelineError
from compress.prune.latency.machine import processor
from compress.registries import BACKENDS

_CPU = Path("/sys/devices/system/cpu")
_INT8_FLAGS = {  # flags in /proc/cpuinfo of instructions that multiply INT8
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "amx_int8": "AMX",
    "asimddp": "dot product (ARM)",
    "i8mm": "I8MM (ARM)",
}


@dataclass(frozen=True)
class Ability:
    """One line of ``doctor``.

    Attributes:
        of: category, such as ``engine``.
        name: such as ``openvino``.
        said: the finding, in words.
        here: whether it is available; None for a plain fact, such as the processor's name.
        remedy: how to install or change it; may be empty.
    """

    of: str
    name: str
    said: str
    here: bool | None = None
    remedy: str = ""


def abilities() -> list[Ability]:
    """All findings, in the order in which they are printed."""
    engines = [_engine(name) for name in BACKENDS]
    return [
        Ability("software", "resnet-compress", __version__),
        Ability("software", "Python", platform.python_version()),
        _torch(),
        *engines,
        *(_int8(one.name) for one in engines if one.here),
        *_processor(),
        *_gpus(),
        _clock("governor", _CPU / "cpu0/cpufreq/scaling_governor"),
        _turbo(),
        *_heat(),
        *map(_target, targets.names()),
    ]


def _engine(name: str) -> Ability:
    try:
        backend(name).require(BACKENDS[name].device)
        version = version_of(name)
    except BackendAbsent as absent:
        return Ability("engine", name, absent.message, here=False, remedy=absent.remedy or "")
    except (ImportError, OSError) as error:  # the library is installed but does not load
        return Ability("engine", name, str(error), here=False)
    return Ability("engine", name, version, here=True)


def _int8(engine: str) -> Ability:
    try:
        sums = pair_sums(engine)
    except PipelineError as error:
        return Ability("INT8", engine, f"could not be measured: {error.message}")
    if sums is None:
        return Ability("INT8", engine, "not known: the engine runs on a GPU, or its sums match neither int32 nor int16")
    exact = {
        "int32": "exact",
        "int16": "can overflow, unless the weights are limited (pair_sums in the target's profile)",
    }[sums]
    return Ability("INT8", engine, f"adds pairs of products in {sums}: {exact} (measured)")


def _processor() -> Iterator[Ability]:
    yield Ability("processor", "name", f"{processor()}, {platform.machine()}")
    yield Ability("processor", "INT8 instructions", ", ".join(_int8_instructions()) or "none known")
    yield Ability("processor", "processors", f"{len(own_processors())} usable of {os.cpu_count()}")
    memory = psutil.virtual_memory()
    yield Ability("memory", "memory", f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} free")


def _int8_instructions() -> list[str]:
    text = _told(lambda: Path("/proc/cpuinfo").read_text(encoding="utf-8")) or ""
    flags = {
        word for line in text.splitlines() if line.lower().startswith(("flags", "features")) for word in line.split()
    }
    return [said for flag, said in _INT8_FLAGS.items() if flag in flags]


def _gpus() -> Iterator[Ability]:
    names = gpu_names()
    yield from (Ability("GPU", str(index), name, here=True) for index, name in enumerate(names))
    if not names:
        yield Ability("GPU", "NVIDIA", "none, or no driver", here=False)


def _torch() -> Ability:
    import torch

    cuda = f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else "no CUDA device"
    return Ability("software", "PyTorch", f"{torch.__version__}, {cuda}")


def _clock(name: str, file: Path) -> Ability:
    found = _told(lambda: file.read_text(encoding="ascii").strip())
    remedy = "`cpupower frequency-set --governor performance`, for steadier measurements"
    return Ability("clock", name, found or "not reported by this system", remedy=remedy if found == "powersave" else "")


def _turbo() -> Ability:
    """Intel's driver reports ``no_turbo``, other drivers ``boost``."""
    for file, on in (("intel_pstate/no_turbo", "0"), ("cpufreq/boost", "1")):
        path = _CPU / file
        if (found := _told(partial(path.read_text, encoding="ascii"))) is not None:
            return Ability("clock", "turbo", "on" if found.strip() == on else "off")
    return Ability("clock", "turbo", "not reported by this system")


def _heat() -> Iterator[Ability]:
    zones = heat().zones
    yield from (Ability("heat", zone.name, f"{zone.temperature_c:.0f} °C") for zone in zones)
    if not zones:
        yield Ability("heat", "thermal zones", "none: a slow-down by heat cannot be detected")


def _target(name: str) -> Ability:
    engine = targets.profile(name).engines[0]
    try:
        check_machine(name)
        require_builder(engine, BACKENDS[engine].device)
    except BackendAbsent as absent:
        return Ability(
            "target", name, f"cannot be built here: {absent.message}", here=False, remedy=absent.remedy or ""
        )
    try:
        backend(engine).require(BACKENDS[engine].device)
    except BackendAbsent as absent:
        return Ability("target", name, f"can be built here, for {engine}, but not run: {absent.message}", here=True)
    return Ability("target", name, f"can be built here, for {engine}", here=True)


def _told(ask: Callable[[], str]) -> str | None:
    try:
        return ask()
    except (OSError, UnicodeDecodeError):
        return None
