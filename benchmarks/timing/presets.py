"""The presets of a measurement's effort, and how a command line changes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.statistics.intervals import samples_needed
from benchmarks.timing.machine import own_processors
from benchmarks.timing.worker import FEWEST, Settings
from compress.errors import ConfigError

PRESETS = {
    "fast": Settings(warmup_s=0.1, duration_s=1.0, iterations=64, limit_s=20.0, processes=6),
    "normal": Settings(),
    "rigorous": Settings(warmup_s=0.5, duration_s=30.0, iterations=1000, limit_s=300.0, processes=20),
}


def chosen(preset: str, engines: Sequence[Path], **given: Any) -> Settings:
    """The settings of a preset, with the given values replaced.

    Args:
        engines: engine files to measure.
        given: values of ``Settings``; None keeps the preset's value.

    Raises:
        ConfigError: more streams than the processors can run at once, or too few processes for ``precision``.
    """
    told = {name: value for name, value in given.items() if value is not None}
    settings = dataclasses.replace(PRESETS[preset], **told)
    processors = len(settings.affinity or own_processors())
    on_cpu = not all(map(settings.on_gpu, engines))
    if settings.streams > 1 and on_cpu and settings.streams * settings.threads > processors:
        raise ConfigError(
            f"{settings.streams} streams of {settings.threads} thread(s) would wait for one another on {processors} "
            "processors",
            remedy=f"give {max(1, processors // settings.threads)} with --streams",
        )
    if settings.precision and settings.processes <= FEWEST:
        raise ConfigError(
            f"--precision may save processes beyond the {FEWEST}th, and there are {settings.processes}",
            remedy="give more with --processes",
        )
    if settings.percentile:
        needed = max(samples_needed(percent / 100) for percent in settings.percentile)
        settings = dataclasses.replace(settings, iterations=max(settings.iterations, needed))
    return dataclasses.replace(settings, limit_s=max(settings.limit_s, settings.duration_s))
