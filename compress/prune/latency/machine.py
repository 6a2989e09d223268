"""Describe the machine, engine and device that this process would measure a target's latency on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from compress.config import TargetConfig
from compress.engines.base import backend, check_machine, version_of
from compress.engines.saturation import pair_sums
from compress.errors import BackendAbsent
from compress.prune.latency.table import Machine


def absence(target: TargetConfig) -> BackendAbsent | None:
    """Why this machine cannot run the target's files; None if it can."""
    try:
        backend(target.engine).require(target.device)
        check_machine(target.name)
    except BackendAbsent as why:
        return why
    return None


def here(target: TargetConfig) -> Machine | None:
    """The target's engine and device on this machine; None if it cannot run the target's files."""
    if absence(target):
        return None
    device = torch.cuda.get_device_name() if target.device == "cuda" else processor()
    return Machine(
        target.name,
        target.engine,
        version_of(target.engine),
        device,
        platform.machine(),
        target.threads,
        target.batch,
        pair_sums(target.engine) or "",
    )


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
