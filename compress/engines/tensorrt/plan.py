"""Compile a plan: from an ONNX file, with a target's settings, to the bytes of the plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.config import TargetConfig
from compress.engines.tensorrt.native import in_words, logger_of, starting
from compress.engines.tensorrt.network import Fault, read_network
from compress.errors import EngineError
from compress.progress import Progress

if TYPE_CHECKING:
    from compress.engines.tensorrt.edition import Edition

_LARGEST_BATCH = 32  # a plan takes batches up to at least this, so that accuracy is not measured image by image

Shapes = Mapping[str, tuple[tuple[int, ...], ...]]


def build_plan(
    edition: Edition, trt: Any, onnx_path: Path, target: TargetConfig, folder: Path, progress: Progress
) -> tuple[bytes, Shapes]:
    """Parse an ONNX file and build a plan from it.

    Args:
        trt: the edition's module.
        folder: where earlier builds have left what makes this one faster.

    Returns:
        the plan, and the least, best and most shape of each input.

    Raises:
        EngineError: TensorRT cannot start, read the file or build it.
    """
    logger = logger_of(trt)
    with starting(logger):
        builder = trt.Builder(logger)
    network, parser, refused = read_network(trt, builder, logger, onnx_path)
    check_read(edition, onnx_path, refused)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the inspector reports types
    edition.configure(trt, builder, config, target)
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {tensor.name: shape_range(tuple(tensor.shape), target.batch) for tensor in tensors}
    profile = builder.create_optimization_profile()
    for name, (least, best, most) in shapes.items():
        profile.set_shape(name, least, best, most)
    config.add_optimization_profile(profile)
    edition.before_build(config, folder)
    monitor = make_monitor(trt, progress)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor.stopped:
        raise KeyboardInterrupt
    if plan is None:
        raise EngineError(f"{edition.title} cannot build {onnx_path}: {in_words(logger.errors)}")
    edition.after_build(config, folder)
    del parser  # the network refers to weights that the parser holds
    return bytes(plan), shapes


def check_read(edition: Edition, path: Path, refused: Sequence[Fault]) -> None:
    """Raise EngineError, with TensorRT's reasons, if it refuses a file."""
    if refused:
        reasons = "; ".join((f"node '{fault.node}': " if fault.node else "") + fault.message for fault in refused)
        raise EngineError(
            f"{edition.title} cannot build {path}: {reasons}",
            remedy=f"`python -m compress lint {path} --target {edition.name}` says what it needs",
        )


def make_monitor(trt: Any, progress: Progress) -> Any:
    """A TensorRT progress monitor that shows the outermost phase step by step; Ctrl-C sets ``stopped``."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped = False
            self._phase: str | None = None
            self._steps: Iterator[int] = iter(())

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if self._phase is None:
                self._phase = phase_name
                self._steps = iter(progress.track(range(num_steps), phase_name, num_steps))
                next(self._steps, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                if phase_name == self._phase:
                    next(self._steps, None)
            except KeyboardInterrupt:  # must not pass through TensorRT; returning False ends the build
                self.stopped = True
            return not self.stopped

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self._phase:
                for _ in self._steps:  # closes the bar
                    pass
                self._phase = None

    return Monitor()


def shape_range(shape: tuple[int, ...], batch: int) -> tuple[tuple[int, ...], ...]:
    """Least, best and most shape of an input whose first dimension may be dynamic (-1).

    >>> shape_range((-1, 3, 224, 224), batch=1)
    ((1, 3, 224, 224), (1, 3, 224, 224), (32, 3, 224, 224))

    Raises:
        EngineError: another dimension is dynamic, or the batch is fixed to another number.
    """
    first, rest = shape[0], tuple(shape[1:])
    if -1 in rest:
        raise EngineError(f"only the batch may be dynamic, but the input is {shape}")
    if first == -1:
        return tuple((size, *rest) for size in (1, batch, max(batch, _LARGEST_BATCH)))
    if first != batch:
        raise EngineError(f"the file is made for batches of {first}, not {batch}", remedy=f"use batch {first}")
    return (shape,) * 3
