"""The registries that users can add to, by name: importance criteria, range methods, engines, training steps.

Targets (``targets.add``), lint rules (``export.rules.registry.rule``) and operations (``graph.ops.OPERATIONS``) can be
added in the same way; docs/extending.md shows each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from compress.registry import Registry

if TYPE_CHECKING:
    from compress.prune.importance.scores import Criterion
    from compress.quantize.ranges import Method
    from compress.train.steps import Step


class Backend(NamedTuple):
    """What implements a runtime, and how its files are told apart.

    Attributes:
        suffix: of the engine file.
        module: the backend's module, or ``module:attribute``; ``engines.base.BackendModule`` says what it must provide.
        weights: suffix of a second file that holds the weights; empty if one file holds all.
        device: where its engines run if nothing else is asked for: ``cpu`` or ``cuda``.
        magic: the first bytes of its files, if they tell it from another backend with the same suffix.
    """

    suffix: str
    module: str
    weights: str = ""
    device: str = "cpu"
    magic: bytes = b""


CRITERIA: Registry[Criterion] = Registry(
    "importance criterion",
    {
        "obs": "compress.prune.importance.obs:by_repair",
        "taylor": "compress.prune.importance.taylor:criterion",
        "norm": "compress.prune.importance.norm:criterion",
        "random": "compress.prune.importance.random:criterion",
    },
)

RANGES: Registry[Method] = Registry(
    "range method", {name: f"compress.quantize.ranges:{name}" for name in ("minmax", "percentile", "entropy", "mse")}
)

STEPS: Registry[Step] = Registry(
    "training step", {name: f"compress.train.steps:{name}" for name in ("mixup", "cutmix", "mixup_or_cutmix")}
)

BACKENDS: Registry[Backend] = Registry("engine", {})
BACKENDS.add("onnxruntime")(Backend(".onnx", "compress.engines.onnxruntime"))
BACKENDS.add("openvino")(Backend(".xml", "compress.engines.openvino", weights=".bin"))
BACKENDS.add("tensorrt")(Backend(".plan", "compress.engines.tensorrt.standard:TENSORRT", device="cuda"))
BACKENDS.add("tensorrt-rtx")(Backend(".plan", "compress.engines.tensorrt.rtx:RTX", device="cuda", magic=b"vtrt"))
