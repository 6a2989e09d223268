"""``python -m benchmarks.latency --engine FILE [FILE ...]``: how long one inference takes, and how sure that is.

Several engines are measured in one interleaved run and compared with the first; one that crashes, hangs or is absent
does not end it. With ``--baseline`` each is also compared with an earlier run, by the rules of ``benchmarks.compare``.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from benchmarks.compare import add_arguments, as_markdown, present
from benchmarks.nodes.profile import check, export
from benchmarks.results.comparison import INVALID, compare, exit_code
from benchmarks.results.schema import LatencyResult, dump, load_latency
from benchmarks.results.tables import emit, interval, literal, markdown, rate, show, speedup
from benchmarks.statistics.intervals import samples_needed
from benchmarks.timing.machine import own_processors
from benchmarks.timing.reference import yardsticks
from benchmarks.timing.run import measure
from benchmarks.timing.worker import FEWEST, Settings, open_for
from compress.commands import run_command
from compress.console import Console
from compress.engines.base import Array
from compress.engines.examine import examine
from compress.errors import BackendAbsent, ConfigError, PipelineError
from compress.progress import Terminal

PRESETS = {
    "fast": Settings(warmup_s=0.1, duration_s=1.0, iterations=64, limit_s=20.0, processes=6),
    "normal": Settings(),
    "rigorous": Settings(warmup_s=0.5, duration_s=30.0, iterations=1000, limit_s=300.0, processes=20),
}


ENGINES_HELP = "engine files (.onnx, .xml, .plan), or a stage's model.safetensors, which PyTorch runs"
HEADER = [
    "engine",
    "median ms",
    "p90 ms",
    "speed-up",
    "images/s",
    "load ms",
    "first ms",
    "file MB",
    "peak MB",
    "GMAC/s",
    "of peak",
]


def rows(results: Sequence[LatencyResult]) -> list[list[str]]:
    """Results as the cells of a table, one row an engine."""
    return [_row(result) for result in results]


def _row(result: LatencyResult) -> list[str]:
    stats, work = result.stats["latency_ms"], result.work
    p90 = stats.percentiles["p90"]
    peak = work and work.peak_gmacs_per_s
    return [
        Path(result.artifact.path).name,
        interval(stats.median),
        interval(p90) if p90 else "too few",
        speedup(result.comparison.ratio if result.comparison else None),
        rate(result.throughput),
        f"{result.load_ms:.0f}",
        f"{result.first_inference_ms:.1f}",
        f"{result.artifact.bytes / 1e6:.1f}",
        f"{result.peak_memory_bytes / 1e6:.0f}",
        f"{work.gmacs_per_s:.1f}" if work else "",
        f"{work.gmacs_per_s / peak:.0%}" if work and peak else "",
    ]


def to_csv(results: Sequence[LatencyResult]) -> str:
    """Results with a line an engine; a number that was not measured is an empty cell."""
    lines = [_record(result) for result in results]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _record(result: LatencyResult) -> dict[str, object]:
    stats = result.stats["latency_ms"]
    intervals = {
        "median_ms": stats.median,
        **{f"{name}_ms": bounds for name, bounds in stats.percentiles.items()},
        "ratio": result.comparison and result.comparison.ratio,
        "throughput": result.throughput,
    }
    return {
        "engine": result.artifact.path,
        "sha256": result.artifact.sha256,
        "date": result.date,
        "backend": result.backend.name,
        "version": result.backend.version,
        "provider": result.backend.actual,
        "threads": result.modes["threads"],
        "batch": result.scenario.batch,
        "streams": result.scenario.streams,
        **{
            f"{name}{suffix}": bounds and getattr(bounds, field)
            for name, bounds in intervals.items()
            for suffix, field in (("", "value"), ("_lo", "lo"), ("_hi", "hi"))
        },
        "samples": stats.n,
        "first_inference_ms": result.first_inference_ms,
        "load_ms": result.load_ms,
        "bytes": result.artifact.bytes,
        "peak_memory_bytes": result.peak_memory_bytes,
        "gmacs_per_s": result.work and result.work.gmacs_per_s,
        "peak_gmacs_per_s": result.work and result.work.peak_gmacs_per_s,
        "verdict": result.verdict.status,
    }


def remarks(results: Sequence[LatencyResult]) -> list[str]:
    """What makes a measurement invalid or doubtful, one line each."""
    return [
        f"{kind}: {Path(result.artifact.path).name}: {text}"
        for result in results
        for kind, texts in (("INVALID", result.verdict.reasons), ("warning", result.warnings))
        for text in texts
    ]


def to_markdown(results: Sequence[LatencyResult]) -> str:
    """The table and the remarks."""
    bullets = "".join(f"- {literal(remark)}\n" for remark in remarks(results))
    return f"{title(results[0])}\n\n{markdown(HEADER, rows(results))}\n\n{bullets}"


def title(result: LatencyResult) -> str:
    """What was measured on what, in one line."""
    shape = "x".join(str(dim) for dim in result.scenario.shape)
    streams = f"{result.scenario.streams} streams of " if result.scenario.streams > 1 else ""
    return f"latency, {shape}, {streams}{result.modes['threads']} thread(s), {result.host.cpu}, 95% intervals"


def positive(text: str) -> float:
    """Argument type: a number above 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def count(text: str) -> int:
    """Argument type: a whole number from 1."""
    return _from(1, text)


def seed(text: str) -> int:
    """Argument type: a whole number from 0."""
    return _from(0, text)


def _from(least: int, text: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is not at least {least}")
    return value


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    p.add_argument("--engine", nargs="+", type=Path, required=True, metavar="FILE", help=ENGINES_HELP)
    p.add_argument("--batch", type=count, help="batch size (1)")
    p.add_argument("--threads", type=count, help="intra-op threads (1)")
    p.add_argument("--streams", type=count, help="processes at the same time, for the throughput; 1 is for latency (1)")
    p.add_argument("--device", choices=("cpu", "cuda"), help="default: the runtime's own")
    p.add_argument("--warmup", dest="warmup_s", type=positive, metavar="S", help="seconds of warm-up, at least")
    p.add_argument("--duration", dest="duration_s", type=positive, metavar="S", help="seconds an engine, at least")
    p.add_argument("--iterations", type=count, metavar="N", help="samples an engine, at least")
    p.add_argument("--processes", type=count, help="worker processes an engine, one after the other (10)")
    p.add_argument(
        "--precision", type=_share, metavar="P%", help="enough once every median is known to within this: 0.5%%"
    )
    p.add_argument(
        "--percentile", type=_percent, nargs="+", metavar="P", help="tell these too: 99.9 (90, 95, 99 always)"
    )
    p.add_argument("--affinity", type=_processors, metavar="0,1", help="processors to bind the workers to")
    p.add_argument("--timeout", dest="timeout_s", type=positive, metavar="S", help="patience with a silent worker")
    p.add_argument("--seed", type=seed, help="of inputs and order (0)")
    p.add_argument("--data", help="run on real images: digits, cifar10:FOLDER, or an image folder")
    p.add_argument("--trust", action="store_true", default=None, help="open a plan whose sidecar does not vouch for it")
    effort = p.add_mutually_exclusive_group()
    effort.add_argument("--fast", dest="preset", action="store_const", const="fast", help="1 s in 6 processes")
    effort.add_argument("--rigorous", dest="preset", action="store_const", const="rigorous", help="30 s in 20")
    p.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="write the results as a JSON array; - is stdout"
    )
    p.add_argument("--csv", metavar="FILE", help="write the results as CSV, a line an engine")
    p.add_argument("--markdown", metavar="FILE", help="write the tables and remarks as Markdown")
    p.add_argument(
        "--export-profile", metavar="FILE", help="then profile the engine, and write the time per node as JSON"
    )
    p.add_argument("--strict", action="store_true", help="a warning is as bad as an INVALID measurement: exit 4")
    p.add_argument("--baseline", type=Path, metavar="FILE", help="compare with an earlier run's --json")
    add_arguments(p)
    return p


def settings_of(args: argparse.Namespace) -> Settings:
    """The preset, with what the command line overrides."""
    names = {field.name for field in dataclasses.fields(Settings)}
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    settings = dataclasses.replace(PRESETS[args.preset or "normal"], **given)
    processors = len(settings.affinity or own_processors())
    on_cpu = not all(map(settings.on_gpu, args.engine))
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
        settings = dataclasses.replace(
            settings, percentile=tuple(settings.percentile), iterations=max(settings.iterations, needed)
        )
    return dataclasses.replace(settings, limit_s=max(settings.limit_s, settings.duration_s))


def _share(text: str) -> float:
    return positive(text.removesuffix("%")) / 100


def _percent(text: str) -> float:
    value = float(text)
    if not 50 < value <= 99.99:
        raise argparse.ArgumentTypeError(f"{text} is not between 50 and 99.99")
    return value


def _processors(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(int(part) for part in text.split(",")))


def _sound(engines: Sequence[Path], failures: list[PipelineError]) -> Iterator[Path]:
    """The engine files that can be opened without harm; of the others, why not goes into ``failures``."""
    for path in engines:
        try:
            examine(path)
        except PipelineError as error:
            failures.append(error)
        else:
            yield path


def _images(data: str, engines: Sequence[Path], settings: Settings) -> Array | None:
    """Images as the first engine that opens takes them; where none does, ``measure`` will say why."""
    from benchmarks.evaluation.images import (  # torch: only where images are used
        evaluation_split,
        first_images,
        preprocess_of,
    )

    for path in engines:
        try:
            engine = open_for(path, settings)
        except PipelineError:
            continue
        with engine:
            return first_images(evaluation_split(data), preprocess_of(engine, path))
    return None


def _tell(failures: Sequence[PipelineError]) -> int:
    """Print why engines failed; 0 where none did, 5 where all that did are absent here, else 1."""
    console = Console(stderr=True)
    for failure in failures:
        console.print(f"error: {failure}", soft_wrap=True)
    if all(isinstance(failure, BackendAbsent) for failure in failures):
        return BackendAbsent.exit_code if failures else 0
    return 1


def _command(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    if args.fail_on and args.baseline is None:
        raise ConfigError("--fail-on needs an earlier run to compare with", remedy="give --baseline FILE")
    baseline = None if args.baseline is None else load_latency(args.baseline)
    settings = settings_of(args)
    if args.export_profile is not None:
        check(args.engine, settings, args.export_profile)
    failures: list[PipelineError] = []
    engines = list(_sound(args.engine, failures))
    if not engines:
        return _tell(failures)
    if args.data is not None:
        settings = dataclasses.replace(settings, images=_images(args.data, engines, settings))
    command = list(sys.argv if argv is None else argv)
    known_work = settings.streams == 1 and not all(map(settings.on_gpu, engines))
    with yardsticks() if known_work else nullcontext(()) as known:
        results = measure(
            engines,
            settings,
            yardsticks=known,
            argv=command,
            on_failure=lambda _, error: failures.append(error),
            progress=Terminal(),
        )
    if not results:
        return _tell(failures)
    console = Console(stderr="-" in (args.json, args.csv, args.markdown, args.export_profile))
    if args.json is not None:
        emit(dump(results), args.json)
    if args.csv is not None:
        emit(to_csv(results), args.csv)
    show(console, title(results[0]), HEADER, rows(results))
    for remark in remarks(results):
        console.print(remark, soft_wrap=True)
    failed = _tell(failures)
    report = to_markdown(results)
    regression = 0
    if baseline is not None:
        comparison = compare(baseline, results, args.fail_on, allow_different=args.allow_different, argv=command)
        against = f"over {args.baseline}, a ratio below 1 is faster"
        console.print()
        present(console, comparison, against)
        report += f"\n{as_markdown(comparison, against)}"
        regression = exit_code(comparison)
    if args.markdown is not None:
        emit(report, args.markdown)
    if args.export_profile is not None:
        export(args.engine[0], settings, results[0], args.export_profile, console)
    doubtful = any(result.verdict.status == "INVALID" or (args.strict and result.warnings) for result in results)
    invalid = INVALID if doubtful else 0
    return failed or invalid or regression


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 an engine failed, 2 usage, 3 regression, 4 a measurement is invalid, 5 backend absent."""
    return run_command(lambda: _command(argv))


if __name__ == "__main__":
    sys.exit(main())
