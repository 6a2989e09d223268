"""The precision in which the layers of a built plan run, read from the report of TensorRT's engine inspector.

TensorRT fuses layers and chooses kernels by itself; only the built plan shows which layers run in INT8. The report is
JSON. Versions 8 to 10 describe a tensor by one phrase, ``"Format/Datatype": "Thirty-two wide channel vectorized row
major Int8 format"``; version 11 has split that into ``Format`` and ``DataType``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from compress.errors import EngineError

_TYPE_KEYS = ("Format/Datatype", "DataType", "Datatype", "Format")
_TYPES = (("int8", r"int8"), ("fp16", r"fp16|half|float16|bf16"), ("fp32", r"fp32|float"))  # narrowest first
_MOVES = ("reformat", "constant", "shuffle", "noop", "signal", "wait", "copy", "cast")
_WEIGHTED = re.compile(r"conv|gemm|matmul|matrixmultiply|fullyconnected", re.IGNORECASE)


@dataclass(frozen=True)
class Layers:
    """The layers of a plan by the precision that they compute in; copies and reformats are listed apart.

    Attributes:
        int8: how many compute on INT8.
        fp16, fp32: names of those that compute on FP16 (or BF16) and on FP32.
        unknown: names of those whose precision the report does not give.
        moves: layers that only copy, cast or reorder.
        float_convolutions: those of ``fp32`` that multiply by weights.
    """

    int8: int
    fp16: tuple[str, ...]
    fp32: tuple[str, ...]
    unknown: tuple[str, ...]
    moves: int
    float_convolutions: tuple[str, ...]

    def __str__(self) -> str:
        floats = [f"{len(names)} in {kind}" for kind, names in (("FP16", self.fp16), ("FP32", self.fp32)) if names]
        unknown = [f"{len(self.unknown)} of unknown precision"] if self.unknown else []
        return ", ".join([f"{self.int8} layers in INT8", *floats, *unknown, f"{self.moves} that move data"])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_layers(report: str) -> Layers:
    """Parse the report of ``EngineInspector.get_engine_information(LayerInformationFormat.JSON)``, TensorRT 8 to 11.

    >>> read_layers('{"Layers": [{"Name": "conv1", "LayerType": "CaskConvolution",'
    ...             ' "Inputs": [{"Name": "x", "Format/Datatype": "Row major Int8 format"}], "Outputs": []}]}').int8
    1

    Raises:
        EngineError: the text is not such a report.
    """
    try:
        layers = json.loads(report, strict=False)["Layers"]  # names contain control characters as separators
        named = [layer if isinstance(layer, Mapping) else {"Name": str(layer)} for layer in layers]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"TensorRT's report on the plan cannot be read ({error})") from None
    kinds: dict[str, list[str]] = {kind: [] for kind in ("int8", "fp16", "fp32", "move", "unknown")}
    float_convolutions = []
    for layer in named:
        kind, name = _kind(layer), re.sub(r"[\x00-\x1f]+", " + ", str(layer.get("Name", "")))
        kinds[kind].append(name)
        if kind == "fp32" and _WEIGHTED.search(_type_of(layer)):
            float_convolutions.append(name)
    return Layers(
        int8=len(kinds["int8"]),
        fp16=tuple(kinds["fp16"]),
        fp32=tuple(kinds["fp32"]),
        unknown=tuple(kinds["unknown"]),
        moves=len(kinds["move"]),
        float_convolutions=tuple(float_convolutions),
    )


def _type_of(layer: Mapping[str, Any]) -> str:
    return f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}"


def _kind(layer: Mapping[str, Any]) -> str:
    """The precision that a layer computes in: the narrower type of its first input and its weights."""
    if any(move in str(layer.get("LayerType", "")).lower() for move in _MOVES):
        return "move"
    first = (layer.get("Inputs") or [{}])[0]
    weights = layer.get("Weights")
    told = [str(first.get(key, "")) for key in _TYPE_KEYS]
    told += [str(weights.get("Type", ""))] if isinstance(weights, Mapping) else []
    for kind, pattern in _TYPES:
        if re.search(pattern, " ".join(told), re.IGNORECASE):
            return kind
    return "unknown"
