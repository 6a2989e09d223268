"""``python -m benchmarks.predict IMAGE... --engine FILE``: what an engine finds in images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

from benchmarks.cli import FAILED, PASS, SCENARIO, Count, Device, EngineFile, JsonFile, TrustPlan, run
from compress.commands import command_line
from compress.console import Console


def predict(
    images: Annotated[list[str], Parameter(metavar="IMAGE")],
    /,
    *,
    engine: EngineFile,
    top: Count = 5,
    threads: Annotated[Count, Parameter(group=SCENARIO)] = 1,
    device: Annotated[Device | None, Parameter(group=SCENARIO)] = None,
    trust: Annotated[TrustPlan, Parameter(group=SCENARIO)] = False,
    json: JsonFile = None,
) -> int:
    """Show what an engine finds in images: the best classes with their probabilities.

    The images go one by one through the engine's own runtime, with the preprocessing and the class names that are
    stored in the file. For a network that is no classifier, the shape and the range of every output are shown. The
    latency at the end is for a first look; `latency` measures it.

    Exit code: 0, 1 an image could not be read or another error, 2 usage, 5 engine absent.

    Args:
        images: Image files, folders, or patterns such as 'photos/*.jpg'.
        top: Number of classes to show.
        threads: Intra-op threads.
        device: Default: the engine's own.
    """
    from benchmarks.deployment.device.predict import RUNS, lines, median_ms
    from benchmarks.deployment.images import image_files
    from benchmarks.deployment.network import open_network
    from benchmarks.results.answers import Answer, PredictFile
    from benchmarks.results.artifact import artifact
    from benchmarks.results.base import BackendInfo
    from benchmarks.results.tables import emit
    from benchmarks.timing.machine import tool
    from calibration.decode import decode
    from compress.engines.examine import examine
    from compress.errors import DataError
    from compress.files import to_json
    from compress.models.model import TENSORS

    engine = engine / TENSORS if (engine / TENSORS).is_file() else engine
    examine(engine)
    console, stderr = Console(stderr=json == "-"), Console(stderr=True)
    answers, errors, x, latency_ms = [], [], None, None
    with open_network(engine, threads=threads, device=device, trust=trust) as network:
        for found in image_files(images):
            try:
                if isinstance(found, DataError):
                    raise found
                x = network.input(decode(found, alpha=True))
            except DataError as error:
                where = "" if isinstance(found, DataError) or str(found) in error.message else f"{found}: "
                stderr.print(f"error: {where}{error}", soft_wrap=True)
                errors.append(f"{where}{error.message}")
                continue
            answer = network.answer(network.run(x), top)
            console.print("\n".join([str(found), *lines(answer)]), soft_wrap=True)
            answers.append(Answer.model_validate({"image": str(found), network.kind: answer}))
        opened = network.engine
        backend = BackendInfo(
            name=opened.name, version=opened.version, requested=opened.requested, actual=opened.provider
        )
        if x is not None:
            latency_ms = median_ms(lambda: network.run(x))
            console.print(
                f"{latency_ms:.2f} ms a run (median of {RUNS}, threads: {threads}, {opened.name} {opened.version}); "
                "not a benchmark: see `resnet-compress latency`",
                soft_wrap=True,
            )
    if json is not None:
        record = PredictFile(
            tool=tool(),
            artifact=artifact(engine),
            backend=backend,
            threads=threads,
            latency_ms=latency_ms,
            answers=answers,
            errors=errors,
        )
        emit(to_json(record.model_dump(mode="json")) + "\n", json)
    return FAILED if errors else PASS


app = command_line("python -m benchmarks.predict")
app.default(predict)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``predict``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
