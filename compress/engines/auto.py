"""``--target auto``: build every engine that runs the exported file in INT8 on this machine, and keep the fastest.

``benchmarks.latency`` measures the latencies in a process of its own and writes JSON, which this module reads. The
engines are timed in turn, so that their ratio is right on a busy machine too; the choice depends on the 95% interval of
that ratio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from compress.config import TargetConfig
from compress.engines.base import backend, build_engine, check_machine, engine_files, require_builder
from compress.engines.harness import Bounds, Interval, ask, conditions
from compress.engines.sidecar import sidecar_path
from compress.errors import BackendAbsent, EngineError
from compress.files import discard, write_json
from compress.progress import SILENT, Progress

AUTO = "auto"
RECORD = "auto.json"
_INVALID = 4  # the exit code of ``benchmarks.latency`` if the machine was too noisy; the JSON is still written


@dataclass(frozen=True)
class Measured:
    """The latency of one engine.

    Attributes:
        engine: the engine's name.
        median_ms: milliseconds per inference.
        ratio: its median divided by that of the first engine; below 1 is faster. None for the first engine.
        doubts: why ``benchmarks.latency`` calls the measurement INVALID; empty if it is VALID.
    """

    engine: str
    median_ms: Interval
    ratio: Interval | None
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class AutoFile:
    """What ``auto.json`` holds.

    Attributes:
        kept, reason: the engine that was kept, and why.
        measured: in the order of the engines; empty if only one engine could be built.
        left_out: for each engine that was not built, the reason, by its name.
    """

    kept: str
    reason: str
    measured: tuple[Measured, ...]
    left_out: Mapping[str, str]


def candidates(target: TargetConfig, progress: Progress = SILENT) -> tuple[str, ...]:
    """The engines on this machine that run a file for ``target`` in INT8, the configured one first.

    Where only one engine does, nothing is timed, so it need not run here: that it can be built here is enough.

    Raises:
        BackendAbsent: there is no such engine; the message says what each one lacks.
    """
    lacking = []
    present = []
    alone = len(target.profile.engines) == 1
    for name in sorted(target.profile.engines, key=lambda name: name != target.engine):
        try:
            require_builder(name, target.device) if alone else backend(name).require(target.device)
            check_machine(target.name)
        except EngineError as error:  # not installed, or not for that device
            lacking.append(error)
            progress.note(f"{name} is left out: {_first_line(error)}")
        else:
            present.append(name)
    if not present:
        raise BackendAbsent(
            f"no engine for target {target.name} runs on this machine: {'; '.join(map(_first_line, lacking))}",
            remedy="install one, or use a machine that has one",
        )
    return tuple(present)


def build_fastest(
    engines: Sequence[str], onnx_path: Path, out_dir: Path, target: TargetConfig, progress: Progress = SILENT
) -> Path:
    """Build each of ``engines``, keep the fastest in ``out_dir``, and write the reason to ``auto.json`` beside it.

    Args:
        engines: their names; the first is kept unless another is significantly faster (see ``choose``).

    Returns:
        the engine file.

    Raises:
        EngineError: no engine could be built, or their latencies could not be measured.
    """
    built: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    for name in engines:
        try:
            built[name] = build_engine(name, onnx_path, out_dir, target, progress=progress)
        except EngineError as error:
            left_out[name] = _first_line(error)
            progress.note(f"{name} is left out: {left_out[name]}")
    if not built:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise EngineError(f"no engine could be built from {onnx_path.name}: {reasons}")
    measured = measure(built, target, progress) if len(built) > 1 else []
    kept, reason = choose(measured) if measured else (next(iter(built)), "the only one that could be built")
    progress.note(f"kept {kept}: {reason}")
    for name, path in built.items():
        if name != kept:
            for file in (*engine_files(path), sidecar_path(path)):
                discard(file)
    write_json(out_dir / RECORD, asdict(AutoFile(kept, reason, tuple(measured), left_out)))
    return built[kept]


def measure(built: Mapping[str, Path], target: TargetConfig, progress: Progress = SILENT) -> list[Measured]:
    """Time engine files in one run of ``benchmarks.latency``, in turn.

    Args:
        built: engine file by engine name; the others are compared with the first.

    Raises:
        EngineError: ``benchmarks.latency`` failed; the message is its own.
    """
    progress.note(f"measuring {', '.join(built)}")
    arguments = ["--fast", *conditions(target), "--engine", *map(str, built.values())]
    answer = ask("the engines", "benchmarks.latency", arguments, list[_Result], accepted=(0, _INVALID))
    measured = [_measured(name, one) for name, one in zip(built, answer, strict=True)]
    for line in table(measured):
        progress.note(line)
    return measured


def choose(measured: Sequence[Measured]) -> tuple[str, str]:
    """The engine to keep, and why: the fastest of those that are significantly faster than the first.

    Significantly faster: the whole 95% interval of the ratio is below 1. A noisy machine widens the interval, so if the
    measurement is INVALID, the first engine is kept unless another is significantly faster in spite of the noise.

    >>> first = Measured("onnxruntime", Interval(5.7, 5.6, 5.8), None)
    >>> choose([first, Measured("openvino", Interval(4.9, 4.8, 5.0), Interval(0.86, 0.84, 0.88))])
    ('openvino', '0.860 [0.840, 0.880] of the time of onnxruntime')
    >>> choose([first, Measured("openvino", Interval(5.5, 5.0, 6.0), Interval(0.97, 0.9, 1.1))])[0]
    'onnxruntime'
    """
    first = measured[0].engine
    faster = {one.engine: one.ratio for one in measured if one.ratio is not None and one.ratio.high < 1}
    if not faster:
        return first, "no other is significantly faster"
    best = min(faster, key=lambda engine: faster[engine].value)
    return best, f"{faster[best]} of the time of {first}"


def table(measured: Sequence[Measured]) -> list[str]:
    """The measurements as a table, one line per engine, then the reasons why a measurement is INVALID."""
    first = measured[0].engine
    lines = [f"  {'engine':<12}  {'median ms':<24}  time over {first}"]
    lines += [f"  {one.engine:<12}  {one.median_ms!s:<24}  {one.ratio or 1}" for one in measured]
    return lines + [f"  warning: {one.engine}: {doubt}" for one in measured for doubt in one.doubts]


@dataclass(frozen=True)
class _Statistics:
    median: Bounds


@dataclass(frozen=True)
class _Comparison:
    ratio: Bounds


@dataclass(frozen=True)
class _Verdict:
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Result:
    """The fields that are read from the JSON of ``benchmarks.latency``."""

    stats: Mapping[str, _Statistics]
    comparison: _Comparison | None
    verdict: _Verdict


def _measured(engine: str, result: _Result) -> Measured:
    """Convert one result of ``benchmarks.latency``."""
    ratio = Interval.of(result.comparison.ratio) if result.comparison else None
    return Measured(engine, Interval.of(result.stats["latency_ms"].median), ratio, result.verdict.reasons)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
