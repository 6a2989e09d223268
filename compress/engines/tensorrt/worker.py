"""Let TensorRT read and build a file in a process of its own: the library is native code, which a file may crash.

``python -m compress.engines.tensorrt.worker`` is that process. It reads a job as JSON, and writes its answer as JSON.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from compress import startup
from compress.config import TargetConfig
from compress.engines.base import backend
from compress.engines.tensorrt.native import logger_of, starting
from compress.engines.tensorrt.network import Fault, Parsed, describe, read_network
from compress.engines.tensorrt.plan import build_plan
from compress.errors import BackendAbsent, EngineError, PipelineError
from compress.files import to_json
from compress.parse import parse
from compress.progress import SILENT

if TYPE_CHECKING:
    from compress.engines.tensorrt.edition import Edition

WALL_S = 900  # long, since the machine may be loaded
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)


class CrashError(EngineError):
    """A file crashes the library."""


@dataclass(frozen=True)
class Job:
    """What the process is to do.

    Attributes:
        edition: a name in ``registries.BACKENDS``.
        path: the ONNX file.
        target: settings of the build; None: the defaults, and a file whose sizes are open is only read.
        plan: where to write the plan; None: nowhere.
    """

    edition: str
    path: str
    target: Mapping[str, Any] | None = None
    plan: str | None = None


@dataclass(frozen=True)
class Answer:
    """What came of a job.

    Attributes:
        parsed: None if the library did not start, for the reason in ``error``.
        shapes: least, best and most shape of each input of the plan.
        error, remedy: of an error of ours.
        absent: whether that is a BackendAbsent.
    """

    parsed: Parsed | None = None
    shapes: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    error: str = ""
    remedy: str = ""
    absent: bool = False


def read_apart(
    edition: Edition, path: Path, target: TargetConfig | None = None, plan: Path | None = None
) -> tuple[Parsed, Mapping[str, tuple[tuple[int, ...], ...]]]:
    """What an edition makes of an ONNX file: its parser, and its builder where that needs no GPU.

    Args:
        target: settings of the build; None: the defaults.
        plan: where to write the plan.

    Returns:
        the network, and the least, best and most shape of each input of the plan.

    Raises:
        CrashError: the file crashes the library.
        BackendAbsent, EngineError: the library does not start, or does not end.
    """
    chosen = None if target is None else target.model_dump(mode="json")
    job = Job(edition.name, str(path.resolve()), chosen, None if plan is None else str(plan.resolve()))
    command = startup.python("-m", __name__)
    try:
        done = subprocess.run(
            command,
            input=to_json(asdict(job)).encode(),
            env=startup.same_path(),
            capture_output=True,
            timeout=WALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EngineError(
            f"{edition.title} did not read {path} within {WALL_S} s", remedy="try again when the machine is less busy"
        ) from None
    if -done.returncode in _CRASHES:
        raise CrashError(
            f"{path} crashes {edition.title} ({signal.Signals(-done.returncode).name})",
            remedy=f"run `python -m compress lint {path} --target {edition.name}`, which checks the file by rules",
        )
    if done.returncode:
        how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise EngineError(f"the process that runs {edition.title} ended with {how}. {last}".rstrip(". "))
    answer = parse(done.stdout, Answer, "the answer of TensorRT's process", remedy="", error=EngineError)
    if answer.parsed is None:
        raise (BackendAbsent if answer.absent else EngineError)(answer.error, remedy=answer.remedy)
    return answer.parsed, answer.shapes


def work(job: Job) -> Answer:
    """Do a job in this process."""
    edition, path = cast("Edition", backend(job.edition)), Path(job.path)
    trt = edition.module()
    library, logger = f"{edition.title} {trt.__version__}", logger_of(trt)
    with starting(logger):
        builder = trt.Builder(logger)
    network, parser, refused = read_network(trt, builder, logger, path)
    if refused:
        return Answer(Parsed(library, refused=refused))
    parsed = describe(trt, network, library)
    shapes = [tuple(network.get_input(index).shape) for index in range(network.num_inputs)]
    del network, parser, builder  # the network refers to weights that the parser holds
    if not edition.builds_without_gpu or (job.target is None and any(-1 in shape[1:] for shape in shapes)):
        return Answer(parsed)
    batch = max([1, *(shape[0] for shape in shapes if shape)])
    target = TargetConfig.model_validate(job.target or {"engine": edition.name, "batch": batch})
    try:
        with tempfile.TemporaryDirectory() as scratch:
            plan, profile = build_plan(edition, trt, path, target, Path(scratch), SILENT)
    except EngineError as error:
        if job.target is not None:
            raise
        return Answer(replace(parsed, refused=(Fault("", error.message),)))
    if job.plan is not None:
        Path(job.plan).write_bytes(plan)
    return Answer(parsed, profile)


def main() -> None:
    job = parse(sys.stdin.buffer.read(), Job, "the job", remedy="", error=EngineError)
    try:
        answer = work(job)
    except PipelineError as error:
        answer = Answer(error=error.message, remedy=error.remedy, absent=isinstance(error, BackendAbsent))
    sys.stdout.write(to_json(asdict(answer)))


if __name__ == "__main__":
    main()
