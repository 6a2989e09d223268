"""What an exported file says about itself, in the ONNX metadata and in an engine's sidecar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from calibration.preprocess import Preprocess
from compress.errors import EngineError

_PREFIX = "compress."


@dataclass(frozen=True)
class Metadata:
    """Preprocessing, classes and origin of an exported network.

    Attributes:
        arch: the architecture before pruning.
        precision: ``fp32`` or ``int8``.
        preprocess: what an input image goes through.
        classes: name of each logit; empty for a backbone.
        macs, params: multiply-accumulates of one image, parameters.
        target: the target that the quantizers were placed for (``ort-x86``, ``tensorrt``); empty for fp32.
        version: of this package.
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
    def from_props(cls, props: Mapping[str, str]) -> Metadata:
        """The inverse of ``to_props``.

        Raises:
            EngineError: the file was not written by this package.
        """
        try:
            return cls(
                arch=props[_PREFIX + "arch"],
                precision=props[_PREFIX + "precision"],
                preprocess=Preprocess.from_json(json.loads(props[_PREFIX + "preprocess"])),
                classes=tuple(json.loads(props[_PREFIX + "classes"])),
                macs=int(props[_PREFIX + "macs"]),
                params=int(props[_PREFIX + "params"]),
                target=props[_PREFIX + "target"],
                version=props[_PREFIX + "version"],
                float_layers=tuple(json.loads(props.get(_PREFIX + "float_layers", "[]"))),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise EngineError(
                f"the file carries no usable '{_PREFIX}*' metadata ({error})",
                remedy="export it with `python -m compress export`",
            ) from None
