"""``python -m benchmarks.rivals.peers NAME --fp32 FILE --data FOLDER --out FILE``: quantize with another tool."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

from benchmarks.cli import Count, File, Images, Seed, run
from benchmarks.rivals.peers import PEERS, load
from compress.commands import command_line
from compress.errors import ConfigError


def peer(
    name: Annotated[str, Parameter(choices=PEERS)],
    *,
    fp32: File,
    data: Images,
    out: File,
    images: Count = 300,
    seed: Seed = 0,
) -> int:
    """Quantize an exported FP32 file with another tool.

    Exit code: 0, 1 error, 2 usage, 5 the tool's library is absent.

    Args:
        name: The tool and its settings.
        fp32: Exported FP32 file.
        out: INT8 file to write (.onnx; OpenVINO: .xml).
        images: How many calibration images, class-balanced.
        seed: Which images.
    """
    from benchmarks.evaluation.images import calibration_split
    from benchmarks.rivals.peers import source as files
    from calibration.sampler import calibration_sample
    from compress.progress import Terminal

    if out.suffix != (suffix := PEERS[name].suffix):
        raise ConfigError(f"{name} writes {suffix} files, not '{out.name}'", remedy=f"--out NAME{suffix}")
    source = files.read(fp32)
    split = calibration_split(data)
    sample = split.subset(calibration_sample(split, images, seed=seed), "calibration")
    progress = Terminal()
    progress.note(f"quantizing {fp32} on {len(sample)} images ({name})")
    load(name)(source, files.Images(sample, source.metadata.preprocess), out)
    progress.note(f"written: {out}")
    return 0


app = command_line("python -m benchmarks.rivals.peers")
app.default(peer)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``peer``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
