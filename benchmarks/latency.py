"""``python -m benchmarks.latency FILE ...``: measure the latency of engine files, with 95% intervals."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from benchmarks.cli import (
    EFFORT,
    GATES,
    INVALID,
    ONE_PRESET,
    OUTPUT,
    SCENARIO,
    AllowDifferent,
    Count,
    Device,
    EngineFiles,
    File,
    Images,
    JsonFile,
    Limits,
    Percent,
    Preset,
    Processors,
    Seconds,
    Seed,
    TextFile,
    TrustPlan,
    run,
    words,
)
from compress.commands import command_line
from compress.console import Console
from compress.errors import BackendAbsent, ConfigError, PipelineError

if TYPE_CHECKING:
    from benchmarks.timing.worker import Settings
    from calibration.preprocess import Preprocess
    from compress.engines.base import Array

Percentiles = Annotated[
    tuple[Annotated[float, Parameter(validator=Number(gt=50, lte=99.99))], ...],
    Parameter(metavar="P...", consume_multiple=1),
]


@Parameter(name="*", group=SCENARIO)
@dataclass(frozen=True, kw_only=True)
class Scenario:
    """How the engines run.

    Attributes:
        batch: Batch size.
        threads: Intra-op threads.
        streams: Processes that run at the same time, to measure throughput; keep 1 to measure latency.
        device: Default: the engine's own.
        affinity: Processors to bind the workers to.
        seed: Seed of the random inputs and of the order of the engines.
    """

    batch: Count = 1
    threads: Count = 1
    streams: Count = 1
    device: Device | None = None
    affinity: Processors | None = None
    seed: Seed = 0
    trust: TrustPlan = False


@Parameter(name="*", group=EFFORT)
@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long and how often engines are timed.

    Attributes:
        fast: Preset: 1 s of samples in 6 processes.
        rigorous: Preset: 30 s of samples in 20 processes.
        warmup_s: Seconds of warm-up, at least; 0.2 without a preset.
        duration_s: Seconds of samples per engine, at least; 5 without a preset.
        iterations: Samples per engine, at least; 200 without a preset.
        processes: Worker processes per engine, one after the other; 10 without a preset.
        precision: Stop early once the interval of every median is within this share of it, such as 0.5%.
        percentile: Also report these percentiles, such as 99.9; 90, 95 and 99 are always reported.
        timeout_s: Seconds to wait for a worker that does not answer.
    """

    fast: Annotated[bool, Parameter(group=(EFFORT, ONE_PRESET))] = False
    rigorous: Annotated[bool, Parameter(group=(EFFORT, ONE_PRESET))] = False
    warmup_s: Annotated[Seconds | None, Parameter(name="--warmup")] = None
    duration_s: Annotated[Seconds | None, Parameter(name="--duration")] = None
    iterations: Count | None = None
    processes: Count | None = None
    precision: Percent | None = None
    percentile: Percentiles = ()
    timeout_s: Annotated[Seconds, Parameter(name="--timeout")] = 120.0

    @property
    def preset(self) -> Preset:
        return "fast" if self.fast else "rigorous" if self.rigorous else "normal"


@Parameter(name="*", group=GATES)
@dataclass(frozen=True, kw_only=True)
class Gates:
    """What the results are compared with.

    Attributes:
        baseline: Compare with this file, the --json of an earlier run.
        strict: Exit 4 for a warning too, as for an INVALID measurement.
    """

    baseline: File | None = None
    fail_on: Limits = ()
    strict: bool = False
    allow_different: AllowDifferent = False


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True, kw_only=True)
class Output:
    """Where the results go; ``-`` is standard output.

    Attributes:
        csv: Write the results as CSV, one line per engine.
        markdown: Write the tables and remarks as Markdown.
        export_profile: Profile the engine after the measurement, and write the time of each node as JSON.
    """

    json: JsonFile = None
    csv: TextFile = None
    markdown: TextFile = None
    export_profile: TextFile = None


def latency(
    engines: EngineFiles,
    *,
    data: Annotated[Images | None, Parameter(group=SCENARIO)] = None,
    scenario: Scenario = Scenario(),
    effort: Effort = Effort(),
    gates: Gates = Gates(),
    output: Output = Output(),
) -> int:
    """Measure the latency of engine files, with 95% intervals.

    Several engines take turns in one run, and each is compared with the first. An engine that crashes, hangs or is
    not installed does not stop the others. --baseline also compares each engine with an earlier run, as compare does;
    --fail-on then limits the ratio to that run, and otherwise the ratio to the first engine. Until the measurement
    ends, the --json file holds the results so far, marked INVALID.

    Exit code: 0, 1 an engine failed, 2 usage, 3 regression, 4 a measurement is invalid, 5 engine absent.
    """
    from benchmarks.nodes.profile import check, export
    from benchmarks.reporting.comparison import as_markdown, present
    from benchmarks.reporting.latency import HEADER, remarks, rows, title, to_csv, to_markdown
    from benchmarks.results.base import dump
    from benchmarks.results.comparison import compare_runs, exit_code, gate_exit_code, gate_in_run, limit
    from benchmarks.results.latency import load_latency
    from benchmarks.results.tables import emit, require_writable, show
    from benchmarks.timing.reference import reference_networks
    from benchmarks.timing.run import measure
    from compress.progress import Terminal

    if gates.fail_on and gates.baseline is None and len(engines) < 2:
        raise ConfigError(
            "--fail-on needs something to compare the engine with",
            remedy="give two engines, the old one first, or an earlier run with --baseline FILE",
        )
    limits = [limit(text) for text in gates.fail_on]
    baseline = None if gates.baseline is None else load_latency(gates.baseline)
    tails = [
        100 * one.quantile for one in limits if one.metric != "median"
    ]  # the percentiles of limits need enough samples
    settings = settings_of(engines, scenario, replace(effort, percentile=(*effort.percentile, *tails)))
    for target in filter(None, asdict(output).values()):
        require_writable(target)
    if output.export_profile is not None:
        check(engines, settings, output.export_profile)
    failures: list[PipelineError] = []
    engines = list(_sound(engines, failures))
    if not engines:
        return _tell(failures)
    if data is not None:
        settings = replace(settings, images=_images(data, engines, settings))
    kept = output.json
    known_work = settings.streams == 1 and not all(map(settings.on_gpu, engines))
    with reference_networks() if known_work else nullcontext(()) as known:
        results = measure(
            engines,
            settings,
            references=known,
            argv=words(),
            on_failure=lambda _, error: failures.append(error),
            on_process=None if kept in (None, "-") else lambda so_far: emit(dump(so_far), kept),
            progress=Terminal(),
        )
    if not results:
        return _tell(failures)
    console = Console(stderr="-" in asdict(output).values())
    try:
        if baseline is None:
            results = gate_in_run(results, limits)
    finally:  # write the results even if a limit has too few samples
        if kept is not None:
            emit(dump(results), kept)
    if output.csv is not None:
        emit(to_csv(results), output.csv)
    show(console, title(results), HEADER, rows(results))
    for remark in remarks(results):
        console.print(remark, soft_wrap=True)
    failed = _tell(failures)
    report = to_markdown(results)
    regression = gate_exit_code(gate for one in results if one.comparison for gate in one.comparison.gates)
    if baseline is not None:
        allowed = gates.allow_different
        comparison = compare_runs(baseline, results, limits, allow_different=allowed, argv=words())
        against = f"over {gates.baseline}, a ratio below 1 is faster"
        console.print()
        present(console, comparison, against)
        report += f"\n{as_markdown(comparison, against)}"
        regression = exit_code(comparison)
    if output.markdown is not None:
        emit(report, output.markdown)
    if output.export_profile is not None:
        export(engines[0], settings, results[0], output.export_profile, console)
    doubtful = any(result.verdict.status == "INVALID" or (gates.strict and result.warnings) for result in results)
    invalid = INVALID if doubtful else 0
    return failed or invalid or regression


def settings_of(engines: Sequence[Path], scenario: Scenario, effort: Effort) -> Settings:
    """The settings of the preset, changed by the command line.

    Raises:
        ConfigError: see ``chosen``.
    """
    from benchmarks.timing.presets import chosen

    given = {name: value for name, value in asdict(effort).items() if name not in ("fast", "rigorous")}
    return chosen(effort.preset, engines, **asdict(scenario), **given)


def _sound(engines: Sequence[Path], failures: list[PipelineError]) -> Iterator[Path]:
    """Yield the engine files that are safe to open; append the errors of the others to ``failures``."""
    from compress.engines.examine import examine

    for path in engines:
        try:
            examine(path)
        except PipelineError as error:
            failures.append(error)
        else:
            yield path


def _images(data: str, engines: Sequence[Path], settings: Settings) -> tuple[Array, ...]:
    """Images preprocessed for the engines that open; why the others do not, ``measure`` reports."""
    from benchmarks.evaluation.images import evaluation_split, image_pools, preprocess_of
    from benchmarks.timing.worker import open_for

    found: list[Preprocess] = []
    for path in engines:
        try:
            engine = open_for(path, settings)
        except PipelineError:
            continue
        with engine:
            if engine.metadata is not None or (not found and path == engines[-1]):  # if none has any, the error says so
                found.append(preprocess_of(engine, path))
    return image_pools(evaluation_split(data), found) if found else ()


def _tell(failures: Sequence[PipelineError]) -> int:
    """Print why engines failed, and return the exit code: 0 for no failure, 5 if all of them are absent, else 1."""
    console = Console(stderr=True)
    for failure in failures:
        console.print(f"error: {failure}", soft_wrap=True)
    if all(isinstance(failure, BackendAbsent) for failure in failures):
        return BackendAbsent.exit_code if failures else 0
    return 1


app = command_line("python -m benchmarks.latency")
app.default(latency)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``latency``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
