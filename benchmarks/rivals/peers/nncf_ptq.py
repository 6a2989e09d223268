"""NNCF's post-training quantization, whatever framework the model is of."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import nncf

# What NNCF would import late, in the middle of what is timed, in every framework.
import nncf.torch
from torch import Tensor

from benchmarks.rivals.peers.source import Images
from compress.errors import EngineError


def quantized(
    model: Any, images: Images, feed: Callable[[Tensor], Any], *, overflow_fix: str = "first_layer_only"
) -> Any:
    """The model with NNCF's quantizers.

    Uint8 activations where that fits better (``MIXED``), fast bias correction, all images: its documented settings
    for accuracy on x86. All else is NNCF's default, ``overflow_fix`` included.

    Args:
        feed: from a batch of images to the model's input.
        overflow_fix: whose weights take half their range: ``first_layer_only``, ``enable`` (all) or ``disable`` (none).

    Raises:
        EngineError: NNCF cannot quantize it.
    """
    logging.getLogger("nncf").setLevel(logging.ERROR)
    try:
        return nncf.quantize(
            model,
            nncf.Dataset(images, feed),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(images),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix(overflow_fix)),
        )
    except (nncf.errors.Error, RuntimeError, ValueError) as error:
        raise EngineError(f"NNCF cannot quantize the model: {error}") from error
