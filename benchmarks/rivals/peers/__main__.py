"""``python -m benchmarks.rivals.peers NAME --fp32 FILE --data FOLDER --out FILE``: another tool's INT8 file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evaluation.images import DATA_HELP, calibration_split
from benchmarks.latency import count, seed
from benchmarks.rivals.peers import PEERS, load
from benchmarks.rivals.peers.source import Images, read
from calibration.sampler import calibration_sample
from compress.commands import run_command
from compress.errors import ConfigError
from compress.progress import Terminal


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.rivals.peers", description=__doc__)
    p.add_argument("peer", choices=list(PEERS), metavar="NAME", help=", ".join(PEERS))
    p.add_argument("--fp32", type=Path, required=True, metavar="FILE", help="exported FP32 file")
    p.add_argument("--data", required=True, help=f"calibration images: {DATA_HELP}")
    p.add_argument("--images", type=count, default=300, metavar="N", help="how many, class-balanced (300)")
    p.add_argument("--seed", type=seed, default=0, help="which images (0)")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="INT8 file to write (.onnx; OpenVINO: .xml)")
    return p


def _command(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    if args.out.suffix != (suffix := PEERS[args.peer].suffix):
        raise ConfigError(f"{args.peer} writes {suffix} files, not '{args.out.name}'", remedy=f"--out NAME{suffix}")
    source = read(args.fp32)
    split = calibration_split(args.data)
    sample = split.subset(calibration_sample(split, args.images, seed=args.seed), "calibration")
    progress = Terminal()
    progress.note(f"quantizing {args.fp32} on {len(sample)} images ({args.peer})")
    load(args.peer)(source, Images(sample, source.metadata.preprocess), args.out)
    progress.note(f"written: {args.out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 error, 2 usage, 5 the peer's library is absent."""
    return run_command(lambda: _command(argv))


if __name__ == "__main__":
    sys.exit(main())
