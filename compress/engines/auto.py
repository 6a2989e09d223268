"""``--engine auto``: build every engine that runs the exported file in INT8 here, time them, keep the fastest.

The timing is the harness's (``benchmarks.latency``), in a process of its own, whose JSON is read here. Engines take
turns in it, so that their ratio holds on a busy machine too; the choice rests on that ratio's 95% interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from compress.config import TargetConfig
from compress.engines.base import backend, build_engine, check_machine, engine_files
from compress.engines.harness import Bounds, Interval, ask, conditions
from compress.engines.sidecar import sidecar_path
from compress.errors import BackendAbsent, EngineError
from compress.files import discard, write_json
from compress.progress import SILENT, Progress

AUTO = "auto"
RECORD = "auto.json"
_INVALID = 4  # the harness's exit code for a machine that was too noisy; its figures are there all the same


@dataclass(frozen=True)
class Measured:
    """The latency of one engine.

    Attributes:
        engine: its name.
        median_ms: milliseconds an inference.
        ratio: its median over that of the first engine measured; below 1 is faster. None for the first.
        doubts: why the harness calls the measurement invalid; empty where it does not.
    """

    engine: str
    median_ms: Interval
    ratio: Interval | None
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class AutoFile:
    """What ``auto.json`` holds.

    Attributes:
        kept, reason: the engine, and why this one.
        measured: in the order of the engines; none where only one could be built.
        left_out: why an engine was not built, by its name.
    """

    kept: str
    reason: str
    measured: tuple[Measured, ...]
    left_out: Mapping[str, str]


def candidates(target: TargetConfig, progress: Progress = SILENT) -> tuple[str, ...]:
    """The engines that run a file for ``target`` in INT8 and are on this machine, the configured one first.

    Raises:
        BackendAbsent: none is; the message says what each lacks.
    """
    lacking = []
    present = []
    for name in sorted(target.profile.engines, key=lambda name: name != target.engine):
        try:
            backend(name).require(target.device)
            check_machine(target.name)
        except EngineError as error:  # absent, or not for that device
            lacking.append(error)
            progress.note(f"{name} is left out: {_first_line(error)}")
        else:
            present.append(name)
    if not present:
        raise BackendAbsent(
            f"no engine for target {target.name} is here: {'; '.join(map(_first_line, lacking))}",
            remedy="install one, or run on the device that has it",
        )
    return tuple(present)


def build_fastest(
    engines: Sequence[str], onnx_path: Path, out_dir: Path, target: TargetConfig, progress: Progress = SILENT
) -> Path:
    """Build each of ``engines``, keep the fastest in ``out_dir``, and say why in ``auto.json`` beside it.

    Args:
        engines: names; the first is kept unless another is faster beyond doubt (see ``choose``).

    Returns:
        the engine file.

    Raises:
        EngineError: none could be built, or the harness could not measure them.
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
    """Time engine files against one another in one interleaved run of the harness.

    Args:
        built: file by engine; the others are compared with the first.

    Raises:
        EngineError: the harness failed; the message is its own.
    """
    progress.note(f"measuring {', '.join(built)}")
    arguments = ["--fast", *conditions(target), "--engine", *map(str, built.values())]
    answer = ask("the engines", "benchmarks.latency", arguments, list[_Result], accepted=(0, _INVALID))
    measured = [_measured(name, one) for name, one in zip(built, answer, strict=True)]
    for line in table(measured):
        progress.note(line)
    return measured


def choose(measured: Sequence[Measured]) -> tuple[str, str]:
    """The engine to keep, and why: the one with the least ratio of those that are faster than the first beyond doubt.

    Beyond doubt: the whole 95% interval of its ratio is below 1. A noisy machine widens the interval, so where the
    harness doubts its measurement the first is kept unless another wins in spite of the noise.

    >>> first = Measured("onnxruntime", Interval(5.7, 5.6, 5.8), None)
    >>> choose([first, Measured("openvino", Interval(4.9, 4.8, 5.0), Interval(0.86, 0.84, 0.88))])
    ('openvino', '0.860 [0.840, 0.880] of the time of onnxruntime')
    >>> choose([first, Measured("openvino", Interval(5.5, 5.0, 6.0), Interval(0.97, 0.9, 1.1))])[0]
    'onnxruntime'
    """
    first = measured[0].engine
    faster = {one.engine: one.ratio for one in measured if one.ratio is not None and one.ratio.high < 1}
    if not faster:
        return first, "no other is faster beyond doubt"
    best = min(faster, key=lambda engine: faster[engine].value)
    return best, f"{faster[best]} of the time of {first}"


def table(measured: Sequence[Measured]) -> list[str]:
    """What was measured, one line an engine below a heading, then what the harness doubts."""
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
    """What is wanted of the harness's JSON."""

    stats: Mapping[str, _Statistics]
    comparison: _Comparison | None
    verdict: _Verdict


def _measured(engine: str, result: _Result) -> Measured:
    """One result of the harness."""
    ratio = Interval.of(result.comparison.ratio) if result.comparison else None
    return Measured(engine, Interval.of(result.stats["latency_ms"].median), ratio, result.verdict.reasons)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
