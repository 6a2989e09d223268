"""Check that an exported file computes what torch computes: run both on the same images and report the difference.

A file runs in the engine that it is made for, if that is on this machine. Otherwise ONNX Runtime evaluates it operation
by operation without optimization: in float, and so with the same result on every processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from compress.engines.base import OpenOptions, check_machine
from compress.engines.openvino import open_engine as open_openvino
from compress.engines.openvino import require as require_openvino
from compress.errors import BackendAbsent, ModelError
from compress.export.difference import UNKNOWN, Run, explain
from compress.targets import Profile

FP32_ERROR = 1e-3
INT8_ERROR = 0.15  # between two correct computations that add in different orders: see ``integer``
INTEGER_ERROR = 1e-5  # against the integers: the last bits of the float operations at the end
MIXED_ERROR = 0.03  # the largest error that float operations between integers were seen to cause
_EXPLAINED_ON = 4  # images that a difference is explained on


@dataclass(frozen=True)
class Parity:
    """The difference between two computations of the same outputs.

    Attributes:
        images: number of images compared.
        max_abs: largest absolute difference.
        error: relative error: root of the summed squared differences, divided by that of the reference.
        cosine: between the two, all outputs as one vector.
        agreement: share of images with the same top-1; None unless the network returns one row of logits per image.
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


def run_onnx(path: Path, images: Tensor, *, optimized: bool = True) -> list[NDArray[np.float32]]:
    """The file's outputs from ONNX Runtime on the CPU, one image at a time as on a device.

    Args:
        optimized: run as in production; otherwise operation by operation.

    Raises:
        ModelError: ONNX Runtime cannot load the file or run it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        results = [session.run(None, {name: image[None].numpy()}) for image in images]
    except Exception as error:  # the runtime's exceptions have no public base class
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"ONNX Runtime {ort.__version__} cannot run {path.name}: {reason}",
            remedy="an operation was exported in a form that it does not support; please report it with the network",
        ) from error
    return [np.concatenate(parts) for parts in zip(*results, strict=True)]


def run_openvino(path: Path, images: Tensor) -> list[NDArray[np.float32]]:
    """The file's outputs from OpenVINO.

    Raises:
        BackendAbsent: OpenVINO is not installed.
        EngineError: OpenVINO cannot load the file or run it.
    """
    with open_openvino(path, OpenOptions(threads=torch.get_num_threads())) as engine:
        name = engine.inputs[0].name
        results = [list(engine.run({name: image[None].numpy()}).values()) for image in images]
    return [np.concatenate(parts) for parts in zip(*results, strict=True)]


@dataclass(frozen=True)
class Runner:
    """Runs a file on this machine.

    Attributes:
        name: for messages.
        engine: a name in ``engines.BACKENDS`` if it is the engine that the file is made for, otherwise None.
    """

    name: str
    engine: str | None
    run: Run


NATIVE = Runner("ONNX Runtime", "onnxruntime", run_onnx)
EVALUATED = Runner("ONNX Runtime without optimizations", None, partial(run_onnx, optimized=False))


def runner_for(target: Profile) -> Runner:
    """The target's own engine if it is on this machine, otherwise ONNX Runtime without optimizations."""
    try:
        check_machine(target.name)
        if target.engines[0] == "onnxruntime":
            return NATIVE
        if target.engines[0] == "openvino":
            require_openvino("cpu")
            return Runner("OpenVINO", "openvino", run_openvino)
    except BackendAbsent:
        pass
    return EVALUATED


@dataclass(frozen=True)
class Reference:
    """A computation that a file is compared with.

    Attributes:
        name: for messages.
        network: maps images to outputs.
        limit: the largest relative error that rounding explains; infinite if the comparison is only reported.
        at_quantizers: maps images to the values of the quantized tensors, by quantizer; see ``IntegerNetwork``.
    """

    name: str
    network: Callable[[Tensor], object]
    limit: float = math.inf
    at_quantizers: Callable[[Tensor], Mapping[str, Tensor]] | None = None


def check(path: Path, reference: Reference, images: Tensor, runner: Runner = NATIVE) -> Parity:
    """Compare a file with the network that it was exported from.

    Args:
        images: (N, C, H, W), preprocessed.

    Raises:
        ModelError: they differ by more than ``reference.limit``; the message says where that begins, and why if known.
    """
    parity = compare(run_torch(reference.network, images), runner.run(path, images))
    if not parity.error <= reference.limit:
        where, remedy = "", UNKNOWN
        if reference.at_quantizers is not None:
            few = images[:_EXPLAINED_ON]
            seen = reference.at_quantizers(few)
            where, remedy = explain(path, seen, few, reference.limit, runner.run, runner.engine)
        raise ModelError(
            f"{path.name} in {runner.name} does not compute the same as {reference.name}, on {parity}{where}",
            remedy=remedy,
        )
    return parity
