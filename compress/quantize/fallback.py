"""Accuracy-aware quantization: leave layers in float, the costliest first, until the accuracy is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from compress.errors import ModelError
from compress.progress import SILENT, Progress
from compress.quantize.calibrate import Calibrated


def keep_accuracy(
    calibrated: Calibrated,
    order: Sequence[str],
    drop: Callable[[nn.Module], float],
    max_drop: float,
    progress: Progress = SILENT,
) -> tuple[Calibrated, tuple[str, ...]]:
    """Leave layers in float, the costliest first, until the drop is at most ``max_drop``.

    Args:
        order: layers, those that gain most in float first; see ``Sensitivities.worst_first``.
        drop: of a network against the float one, in any unit.
        max_drop: in the same unit.

    Returns:
        the mixed network, and the layers left in float, in the order in which they were taken.

    Raises:
        ModelError: not even with every layer in float.
    """
    for count in range(len(order) + 1):
        layers = tuple(order[:count])
        mixed = calibrated.leaving(layers)
        lost = drop(mixed.fake())
        progress.note(f"  {count} layers in float: drop {lost:.2f} (limit {max_drop:g})")
        if lost <= max_drop:
            return mixed, layers
    raise ModelError(
        f"the drop stays above {max_drop:g} even with every layer in float",
        remedy="raise quantize.max_drop, or hold out more images (data.holdout): few images make the drop uncertain",
    )
