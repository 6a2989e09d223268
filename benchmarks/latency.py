"""``python -m benchmarks.latency --engine FILE [FILE ...]``: how long one inference takes, and how sure that is.

Several engines are measured in one interleaved run and compared with the first.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.schema import LatencyResult, dump
from benchmarks.tables import emit, interval, show, speedup
from benchmarks.timing import measure
from benchmarks.worker import Settings, open_for
from compress.cli import run_command
from compress.engines.base import Array
from compress.progress import Terminal

INVALID = 4
PRESETS = {
    "fast": Settings(warmup_s=0.2, duration_s=1.0, iterations=64, rounds=10, processes=1),
    "normal": Settings(),
    "rigorous": Settings(warmup_s=1.0, duration_s=30.0, iterations=1000, limit_s=300.0, rounds=60, processes=4),
}


HEADER = ["engine", "median ms", "p90 ms", "speed-up", "first ms", "load ms", "MB", "samples"]


def rows(results: Sequence[LatencyResult]) -> list[list[str]]:
    """Results as the cells of a table, one row an engine."""
    return [_row(result) for result in results]


def _row(result: LatencyResult) -> list[str]:
    stats = result.stats["latency_ms"]
    return [
        Path(result.artifact.path).name,
        interval(stats.median),
        interval(stats.p90) if stats.p90 else "too few",
        speedup(result.comparison.ratio if result.comparison else None),
        f"{result.first_inference_ms:.1f}",
        f"{result.load_ms:.0f}",
        f"{result.artifact.bytes / 1e6:.1f}",
        str(stats.n),
    ]


def title(result: LatencyResult) -> str:
    """What was measured on what, in one line."""
    shape = "x".join(str(dim) for dim in result.scenario.shape)
    return f"latency, {shape}, {result.modes['threads']} thread(s), {result.host.cpu}, 95% intervals"


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
    p.add_argument(
        "--engine", nargs="+", type=Path, required=True, metavar="FILE", help="engine files (.onnx, .xml, .plan)"
    )
    p.add_argument("--batch", type=count, help="batch size (1)")
    p.add_argument("--threads", type=count, help="intra-op threads (1)")
    p.add_argument("--device", choices=("cpu", "cuda"), help="default: the runtime's own")
    p.add_argument("--warmup", dest="warmup_s", type=positive, metavar="S", help="seconds of warm-up, at least")
    p.add_argument("--duration", dest="duration_s", type=positive, metavar="S", help="seconds an engine, at least")
    p.add_argument("--iterations", type=count, metavar="N", help="samples an engine, at least")
    p.add_argument("--processes", type=count, help="worker processes an engine")
    p.add_argument("--affinity", type=_processors, metavar="0,1", help="processors to bind the workers to")
    p.add_argument("--timeout", dest="timeout_s", type=positive, metavar="S", help="patience with a silent worker")
    p.add_argument("--seed", type=seed, help="of inputs and order (0)")
    p.add_argument("--data", help="run on real images: digits, cifar10:FOLDER, or an image folder")
    p.add_argument("--trust", action="store_true", default=None, help="open a plan whose sidecar does not vouch for it")
    effort = p.add_mutually_exclusive_group()
    effort.add_argument("--fast", dest="preset", action="store_const", const="fast", help="1 s an engine")
    effort.add_argument("--rigorous", dest="preset", action="store_const", const="rigorous", help="30 s, 4 processes")
    p.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="write the results as a JSON array; - is stdout"
    )
    return p


def settings_of(args: argparse.Namespace) -> Settings:
    """The preset, with what the command line overrides."""
    names = {field.name for field in dataclasses.fields(Settings)}
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    settings = dataclasses.replace(PRESETS[args.preset or "normal"], **given)
    return dataclasses.replace(settings, limit_s=max(settings.limit_s, settings.duration_s))


def _processors(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _images(data: str, engine: Path, settings: Settings) -> Array:
    from benchmarks.images import evaluation_split, first_images, preprocess_of  # torch: only where images are used

    with open_for(engine, settings) as opened:
        return first_images(evaluation_split(data), preprocess_of(opened, engine))


def _command(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    settings = settings_of(args)
    if args.data is not None:
        settings = dataclasses.replace(settings, images=_images(args.data, args.engine[0], settings))
    results = measure(args.engine, settings, argv=sys.argv if argv is None else argv, progress=Terminal())
    console = Console(stderr=args.json == "-", highlight=False)
    if args.json is not None:
        emit(dump(results), args.json)
    show(console, title(results[0]), HEADER, rows(results))
    for result in results:
        for text in [*result.verdict.reasons, *result.warnings]:
            kind = "INVALID" if text in result.verdict.reasons else "warning"
            console.print(f"{kind}: {Path(result.artifact.path).name}: {text}", markup=False, soft_wrap=True)
    return INVALID if any(result.verdict.status == "INVALID" for result in results) else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 error, 2 usage, 4 the measurement is invalid, 5 backend absent."""
    return run_command(lambda: _command(argv))


if __name__ == "__main__":
    sys.exit(main())
