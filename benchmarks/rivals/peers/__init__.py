"""Quantize a file that we exported with other tools, one module per tool, to compare with ours.

A rival is a module with ``quantize(source, images, out, **options)``; to add one, write a new file and a line in
``PEERS``. ``python -m benchmarks.rivals.peers NAME --fp32 FILE --data FOLDER --out FILE`` runs one.
``torch_pruning`` is different: it prunes, and ``benchmarks.rivals.pruning`` compares it with ours.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.rivals.peers.source import Images, Source
from compress.engines.openvino import without_telemetry
from compress.errors import BackendAbsent, ConfigError


@dataclass(frozen=True)
class Peer:
    """A way of another tool to quantize.

    Attributes:
        module: in this package.
        suffix: of the file that it writes.
        options: keyword arguments of the module's ``quantize``.
    """

    module: str
    suffix: str
    options: Mapping[str, str | bool] = field(default_factory=dict)


PEERS: dict[str, Peer] = {
    "ort_minmax": Peer("ort_static", ".onnx", {"method": "minmax"}),
    "ort_entropy": Peer("ort_static", ".onnx", {"method": "entropy"}),
    "ort_percentile": Peer("ort_static", ".onnx", {"method": "percentile"}),
    "nncf_onnx": Peer("nncf_onnx", ".onnx"),
    "nncf_openvino": Peer("nncf_openvino", ".xml"),
    "ort_default": Peer("ort_static", ".onnx", {"activations": "int8", "per_channel": False}),
    # Without VNNI x86 adds pairs of uint8 x int8 products in saturating int16: what the tools do about it, and nothing.
    "ort_reduce_range": Peer("ort_static", ".onnx", {"reduce_range": True}),
    "ort_u8u8": Peer("ort_static", ".onnx", {"weights": "uint8"}),
    "nncf_openvino_fix": Peer("nncf_openvino", ".xml", {"overflow_fix": "enable"}),
    "nncf_openvino_nofix": Peer("nncf_openvino", ".xml", {"overflow_fix": "disable"}),
}
# The rivals that are compared by default.
USUAL = ("ort_minmax", "ort_entropy", "ort_percentile", "nncf_onnx", "nncf_openvino")

Quantize = Callable[[Source, Images, Path], None]


def load(name: str) -> Quantize:
    """Import a rival's libraries and return the function that writes its INT8 file: ``quantize(source, images, out)``.

    Raises:
        ConfigError: no peer has that name.
        BackendAbsent: its libraries are not installed.
    """
    if name not in PEERS:
        raise ConfigError(f"unknown peer '{name}'", remedy=f"known: {', '.join(PEERS)}")
    peer = PEERS[name]
    try:
        with without_telemetry():
            module = importlib.import_module(f"benchmarks.rivals.peers.{peer.module}")
    except ModuleNotFoundError as error:
        raise BackendAbsent(
            f"peer '{name}' needs {error.name}, which is not installed",
            remedy='`pip install --editable ".[peers]"`, or leave it out',
        ) from None
    return partial(module.quantize, **peer.options)
