"""Does the exported file compute what torch computes? Both run on the same images, and the difference is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from compress.errors import ModelError
from compress.export.half import is_half

FP32_ERROR = 1e-3
INT8_ERROR = 0.15  # of two correct computations that add up in different orders: see ``integer``
INTEGER_ERROR = 0.03  # against the integers; more means other kernels, or a fault


@dataclass(frozen=True)
class Parity:
    """The difference between two computations of the same outputs.

    Attributes:
        images: how many were compared.
        max_abs: largest absolute difference.
        error: root of the summed squared differences, over that of the reference.
        cosine: between the two, all outputs as one vector.
        agreement: share of images with the same top-1; None for a network without a single row of logits.
    """

    images: int
    max_abs: float
    error: float
    cosine: float
    agreement: float | None

    def __str__(self) -> str:
        same = "" if self.agreement is None else f", same top-1 on {self.agreement:.1%}"
        return f"{self.images} images: relative error {self.error:.1e}{same}"


def compare(reference: list[NDArray[np.float32]], other: list[NDArray[np.float32]]) -> Parity:
    """Compare outputs; each array is (images, ...).

    >>> compare([np.float32([[1, 0]])], [np.float32([[1, 0]])])
    Parity(images=1, max_abs=0.0, error=0.0, cosine=1.0, agreement=1.0)
    """
    a, b = (np.concatenate([array.ravel() for array in arrays]).astype(np.float64) for arrays in (reference, other))
    tiny = np.finfo(np.float64).tiny
    cosine = float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), tiny))
    error = float(np.linalg.norm(a - b) / max(np.linalg.norm(a), tiny))
    logits = len(reference) == 1 and reference[0].ndim == 2 and reference[0].shape[1] > 1
    same = float((reference[0].argmax(1) == other[0].argmax(1)).mean()) if logits else None
    return Parity(len(reference[0]), float(np.abs(a - b).max()), error, cosine, same)


def run_torch(net: Callable[[Tensor], object], images: Tensor) -> list[NDArray[np.float32]]:
    """All tensors that ``net`` returns for images (N, C, H, W), in the order of the file's outputs."""
    with torch.no_grad():
        batches = [_leaves(net(batch)) for batch in torch.split(images, 16)]
    return [torch.cat(parts).numpy() for parts in zip(*batches, strict=True)]


def _leaves(outputs: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def run_onnx(path: Path, images: Tensor) -> list[NDArray[np.float32]]:
    """The same through ONNX Runtime on the CPU, one image at a time as on a device.

    A float16 file runs without the optimizer WeightBiasQuantization, which ONNX Runtime 1.31 gets wrong there: on a
    ResNet-18 the outputs had a relative error of 1.0 with it, and of 0.04 to 0.06 without it.

    Raises:
        ModelError: ONNX Runtime cannot load the file or run it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors
    model = path.read_bytes()
    wrong = ["WeightBiasQuantization"] if is_half(onnx.load_from_string(model)) else []
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], disabled_optimizers=wrong)
        name = session.get_inputs()[0].name
        results = [session.run(None, {name: image[None].numpy()}) for image in images]
    except Exception as error:  # the runtime's exceptions have no public base class
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"ONNX Runtime {ort.__version__} cannot run {path.name}: {reason}",
            remedy="an operation was exported in a form that it does not take; please report it with the network",
        ) from error
    return [np.concatenate(parts) for parts in zip(*results, strict=True)]


def check(path: Path, reference: Callable[[Tensor], object], images: Tensor, *, limit: float) -> Parity:
    """Hold a file against the network that it was exported from.

    Args:
        reference: the float network; for an INT8 file the fake-quantized one, or its integers (``integer_network``).
        images: (N, C, H, W), preprocessed.
        limit: the largest relative error that rounding explains.

    Raises:
        ModelError: they differ by more than rounding explains.
    """
    parity = compare(run_torch(reference, images), run_onnx(path, images))
    if not parity.error <= limit:
        raise ModelError(
            f"{path.name} does not compute what torch computes, on {parity}",
            remedy="an operation was exported wrongly; please report it with the network",
        )
    return parity
