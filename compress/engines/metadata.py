"""The metadata of an exported file, stored in the ONNX file and in an engine's sidecar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from calibration.preprocess import Preprocess
from compress.errors import EngineError
from compress.parse import Count, parse

_PREFIX = "compress."
T = TypeVar("T")


@dataclass(frozen=True)
class Metadata:
    """Preprocessing, classes and origin of an exported network.

    Attributes:
        arch: the architecture before pruning.
        precision: ``fp32`` or ``int8``.
        preprocess: how an input image is preprocessed.
        classes: name of each logit; empty for a backbone.
        macs, params: multiply-accumulates of one image, parameters.
        target: the target that the quantizers were placed for (``ort-x86``, ``tensorrt``); empty for fp32.
        version: version of this package.
        float_layers: layers of an INT8 network that are meant to run in float.
    """

    arch: str
    precision: str
    preprocess: Preprocess
    classes: tuple[str, ...]
    macs: int
    params: int
    target: str
    version: str
    float_layers: tuple[str, ...] = ()

    def to_props(self) -> dict[str, str]:
        """As ONNX ``metadata_props``: string to string, keys under ``compress.``."""
        values = {
            "arch": self.arch,
            "precision": self.precision,
            "preprocess": json.dumps(self.preprocess.to_json()),
            "classes": json.dumps(self.classes),
            "macs": str(self.macs),
            "params": str(self.params),
            "target": self.target,
            "version": self.version,
            "float_layers": json.dumps(self.float_layers),
        }
        return {_PREFIX + key: value for key, value in values.items()}

    @classmethod
    def from_props(cls, props: Mapping[str, str], file: object = "the file") -> Metadata:
        """The inverse of ``to_props``.

        Args:
            file: the file that the properties are from, for messages.

        Raises:
            EngineError: the file was not written by this package.
        """

        def value(key: str, form: type[T], missing: str | None = None) -> T:
            text = props.get(_PREFIX + key, missing)
            if text is None:
                raise EngineError(f"{file} has no usable '{_PREFIX}*' metadata: '{key}' is missing", remedy=remedy)
            where = f"{file}: the metadata '{_PREFIX}{key}'"
            text = json.dumps(text) if form is str else text
            return parse(text, form, where, remedy=remedy, error=EngineError)

        remedy = "export it with `python -m compress export`"
        return cls(
            arch=value("arch", str),
            precision=value("precision", str),
            preprocess=value("preprocess", Preprocess),
            classes=value("classes", tuple[str, ...]),
            macs=value("macs", Count),
            params=value("params", Count),
            target=value("target", str),
            version=value("version", str),
            float_layers=value("float_layers", tuple[str, ...], "[]"),
        )
