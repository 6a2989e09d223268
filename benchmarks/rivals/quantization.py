"""``python -m benchmarks.rivals.quantization --fp32 FILE --data CALIB --eval EVAL --out DIR``: compare INT8 quantizers.

Every candidate quantizes the same network on the same calibration images in a process of its own. Its file is then
evaluated in the engine that it is made for: top-1, and the difference from the FP32 network's outputs.
``quantization_step`` says what the times and the memory include. The repeats of the candidates take turns, so that a
busy machine slows all of them alike. A second run makes only what is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
from cyclopts import Parameter

from benchmarks.cli import Count, File, Folder, Images, Seed, TrustFactory, run
from benchmarks.evaluation.images import calibration_split, evaluation_split
from benchmarks.evaluation.pairing import result_of
from benchmarks.evaluation.predictions import predict
from benchmarks.results.accuracy import AccuracyResult
from benchmarks.results.base import Bounds
from benchmarks.results.latency import Monitor
from benchmarks.results.rivals import QuantizationFile, QuantizedNetwork, Step
from benchmarks.results.tables import literal, markdown, percent, points, show
from benchmarks.rivals.peers import PEERS, USUAL
from benchmarks.rivals.peers.source import read
from benchmarks.rivals.quantization_step import Job, run_apart
from benchmarks.statistics import intervals
from benchmarks.timing.machine import concerns, host, machine_state
from calibration.datasets import Split
from calibration.sampler import calibration_sample
from compress import parse, targets
from compress.commands import command_line
from compress.console import Console
from compress.engines.base import Array
from compress.errors import ConfigError
from compress.files import write_atomic, write_json
from compress.progress import SILENT, Progress, Terminal
from compress.quantize.sensitivity import Ratio
from compress.run import Run

HEADER = ["INT8 by", "same answer as FP32, %", "SQNR dB", "top-1 %", "change, points", "time s", "export s", "peak GB"]
INVALID = 4
_STEP = "step.json"


def cells(network: QuantizedNetwork) -> list[str]:
    """A candidate as a row below ``HEADER``."""
    accuracy, steps = network.accuracy, network.steps
    assert accuracy.paired is not None
    same = round(accuracy.paired.agreement * accuracy.images)
    exported = max((step.export_seconds for step in steps), default=0.0)
    return [
        network.name,
        percent(Bounds.of(intervals.wilson(same, accuracy.images))),
        "∞" if network.sqnr_db is None else f"{network.sqnr_db:.2f}",
        f"{100 * accuracy.top1.value.value:.2f}",
        points(accuracy.paired.difference),
        spread([step.seconds for step in steps]),
        f"{exported:.1f}" if exported >= 0.05 else "",
        f"{max(step.peak_bytes for step in steps) / 1e9:.2f}" if steps else "",
    ]


def sqnr_db(reference: Array, other: Array) -> float:
    """Signal-to-quantization-noise ratio in dB over all elements, such as the logits of all images; see ``Ratio``.

    >>> import numpy as np
    >>> round(sqnr_db(np.array([3.0, 4.0]), np.array([3.0, 4.5])), 6)
    20.0
    """
    ratio = Ratio()
    ratio.add(torch.from_numpy(reference), torch.from_numpy(other))
    return ratio.db


def spread(seconds: Sequence[float]) -> str:
    """
    >>> spread([3.0, 1.0, 2.0]), spread([1.0]), spread([])
    ('2.0 [1.0, 3.0]', '1.0', '')
    """
    if len(seconds) < 2:
        return "".join(f"{s:.1f}" for s in seconds)
    return f"{median(seconds):.1f} [{min(seconds):.1f}, {max(seconds):.1f}]"


def produce(
    jobs: Sequence[Job], out: Path, *, repeat: int = 1, force: bool = False, progress: Progress = SILENT
) -> dict[str, list[tuple[Path, Step]]]:
    """Quantize with every candidate ``repeat`` times, in turns, each time in a fresh process.

    Args:
        out: gets a stage folder ``round<i>/<name>`` for each; what is there with the same key is not made again.
        force: make all of them again.

    Returns:
        by name, for each round, the engine file and what it took.

    Raises:
        PipelineError: see ``quantization_step.run``.
    """
    made: dict[str, list[tuple[Path, Step]]] = {job.name: [] for job in jobs}
    for i in range(repeat if jobs else 0):
        run = Run(out / f"round{i + 1}", force=force, progress=progress)
        first = i % len(jobs)  # each round begins with another one
        for job in [*jobs[first:], *jobs[:first]]:
            folder = _make(run, job)
            step = parse.read(folder / _STEP, Step, remedy=f"delete the folder {folder}")
            made[job.name].append((folder / step.file, step))
    return made


def _make(run: Run, job: Job) -> Path:
    sample = job.sample()
    digests = "\n".join(sample.digest(i) for i in range(len(sample)))
    settings = {"sample": hashlib.sha256(digests.encode()).hexdigest(), "libraries": host().libraries}
    parents = [job.fp32] if job.model is None or job.name in PEERS else [job.fp32, job.model]

    def work(out: Path, scratch: Path) -> None:
        write_json(out / _STEP, dataclasses.asdict(run_apart(job, out)))

    return run.stage(job.name, work, settings=settings, parents=parents)


def evaluate(
    fp32: Path, files: Mapping[str, Path], split: Split, *, threads: int = 1, progress: Progress = SILENT
) -> dict[str, tuple[AccuracyResult, float]]:
    """Accuracy of each file, paired with the FP32 file's, and the SQNR of its logits in dB, on the images of ``split``.

    Raises:
        EngineError: a file does not open, or does not say how its images are prepared.
        DataError: the classes are not the data's, or an image cannot be read.
    """
    reference = predict(fp32, split, threads=threads, progress=progress)
    found = {}
    for name, path in files.items():
        other = predict(path, split, threads=threads, progress=progress)
        found[name] = result_of(other, reference), sqnr_db(reference.logits, other.logits)
    return found


def chosen(peers: Sequence[str]) -> list[str]:
    """The peers that are meant; ``all`` means every one.

    >>> chosen(["ort_u8u8"]), chosen(["all"]) == list(PEERS)
    (['ort_u8u8'], True)
    """
    return list(PEERS if "all" in peers else peers)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is compared.

    Attributes:
        fp32: Exported FP32 file.
        data: Calibration images.
        eval: Evaluation images, in the same forms.
        out: Where files and results go.
        peers: Other tools, or all.
        ours: Targets to quantize --model for, or INT8 files that exist.
        model: The same network for ours, such as runs/NAME/baseline.
        images: How many calibration images, class-balanced.
        seed: Which images.
        repeat: Number of repeats, to measure the times.
        threads: Intra-op threads of the evaluation; default: all.
        force: Make every candidate again.
    """

    fp32: File
    data: Images
    eval: Images
    out: Folder
    peers: Annotated[tuple[str, ...], Parameter(metavar="NAME", choices=[*PEERS, "all"], consume_multiple=True)] = USUAL
    ours: Annotated[tuple[str, ...], Parameter(metavar="X", consume_multiple=1)] = ()
    model: Folder | None = None
    images: Count = 300
    seed: Seed = 0
    repeat: Count = 1
    threads: Count = field(default_factory=lambda: os.cpu_count() or 1)
    force: bool = False
    trust: TrustFactory = False


def _jobs(args: Asked) -> tuple[list[Job], dict[str, Path]]:
    """What is to be quantized, and the files that are there already, by name."""
    given = {name: Path(name) for name in args.ours if name not in targets.names()}
    for name, path in given.items():
        if not path.is_file():
            raise ConfigError(
                f"--ours {name} is neither a file nor a target", remedy=f"targets: {', '.join(targets.names())}"
            )
    names = [name for name in args.ours if name not in given]
    if names and args.model is None:
        raise ConfigError(f"--ours {names[0]} needs the float network", remedy="give --model, as in runs/NAME/baseline")
    wanted = [*chosen(args.peers), *names]
    jobs = [Job(name, args.fp32, args.model, args.data, args.images, args.seed, args.trust) for name in wanted]
    if not jobs and not given:
        raise ConfigError("nothing to compare", remedy="give --peers or --ours")
    return jobs, given


def _report(args: Asked, rows: Sequence[QuantizedNetwork], warnings: Sequence[str], console: Console) -> None:
    table = list(map(cells, rows))
    title = (
        f"{args.fp32.name}: INT8 calibrated on {args.images} images, evaluated on {rows[0].accuracy.images}; "
        f"{host().cpu}, 95% intervals (time: median and range of {args.repeat})"
    )
    machine = host(*{row.accuracy.backend.name for row in rows})
    record = QuantizationFile(title=title, host=machine, warnings=list(warnings), rows=tuple(rows))
    record.write(args.out / "quantization.json")
    notes = "".join(f"\n- {literal(warning)}" for warning in warnings)
    write_atomic(args.out / "quantization.md", f"# {literal(title)}\n\n{markdown(HEADER, table)}\n{notes}")
    show(console, title, HEADER, table)
    for warning in warnings:
        console.print(f"warning: {warning}", soft_wrap=True)
    console.print("\nlatency, interleaved:", soft_wrap=True)
    files = " ".join(row.file for row in rows)
    console.print(f"python -m benchmarks.latency --rigorous --engine {files}", soft_wrap=True)


def quantization(args: Asked) -> int:
    """Compare our INT8 quantization with that of other tools.

    Every candidate quantizes the same network on the same calibration images in a process of its own. Its file is then
    evaluated in the engine that it is made for: top-1, and the difference from the FP32 network's outputs. The repeats
    of the candidates take turns. A second run makes only what is missing.

    Exit code: 0, 1 error, 2 usage, 4 outputs that are not finite, 5 another tool's library is absent.
    """
    jobs, files = _jobs(args)
    read(args.fp32)  # a wrong file fails before any process is started
    split, pool, progress = evaluation_split(args.eval), calibration_split(args.data), Terminal()
    calibration_sample(pool, args.images, seed=args.seed, exclude=split)  # none of them may be evaluated on
    before = machine_state()
    made = produce(jobs, args.out, repeat=args.repeat, force=args.force, progress=progress)
    warnings = concerns(Monitor(before=before, after=machine_state()), threads=1)
    files = {**{name: steps[0][0] for name, steps in made.items()}, **files}
    found = evaluate(args.fp32, files, split, threads=args.threads, progress=progress)
    rows = [
        QuantizedNetwork(
            name=name,
            file=str(path),
            steps=tuple(step for _, step in made.get(name, [])),
            sqnr_db=found[name][1] if math.isfinite(found[name][1]) else None,
            accuracy=found[name][0],
        )
        for name, path in files.items()
    ]
    _report(args, rows, warnings, Console())
    return INVALID if any(row.accuracy.verdict.status == "INVALID" for row in rows) else 0


app = command_line("python -m benchmarks.rivals.quantization")
app.default(quantization)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``quantization``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
