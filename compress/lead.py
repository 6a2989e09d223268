"""Stages that one of torchrun's processes runs, while the others wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.ranks import processes
from compress.run import Run


def lead_stage(
    run: Run,
    name: str,
    work: Callable[[Path, Path], None],
    *,
    settings: Mapping[str, Any],
    parents: Sequence[Path] = (),
) -> Path:
    """``run.stage`` for a job that only process 0 runs, while the others wait for its output."""
    if processes() == 1:
        return run.stage(name, work, settings=settings, parents=parents)
    import torch  # takes seconds, and one process does not need it

    from compress.distributed import join

    here = join(torch.device("cpu"))
    if here.leads:
        run.stage(name, work, settings=settings, parents=parents)
    here.tell(None)
    return run.folder(name)
