"""Find the node of the exported file from which a runtime made a node of its graph."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from compress.engines.sidecar import read_sidecar
from compress.files import file_sha256

_WEIGHTED = ("Conv", "Gemm", "MatMul")
_RENAMED = re.compile(r"(_nchwc|_token_\d+|/[^/]*)$")  # such as "node_conv2d/WithoutBiases"


@dataclass(frozen=True)
class Origins:
    """The exported graph, in which ``find`` looks up a runtime's node."""

    names: Mapping[str, onnx.NodeProto]
    producers: Mapping[str, onnx.NodeProto]

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> Origins:
        names = {node.name: node for node in graph.node if node.name}
        return cls(names, {output: node for node in graph.node for output in node.output if output})

    def find(self, name: str, op: str) -> onnx.NodeProto | None:
        """The node of the file; None if the runtime added its node.

        Runtimes name a node after a node of the file or its output, with a suffix for what they changed. A convolution
        that was fused with the following nodes may have the name of one of them; it is traced back to the convolution.
        """
        node = self._named(name)
        kind = next((kind for kind in _WEIGHTED if kind in op), None)
        seen = node
        while kind is not None and seen is not None and seen.op_type != kind:
            seen = self.producers.get(seen.input[0]) if seen.input else None
        return seen or node

    def _named(self, name: str) -> onnx.NodeProto | None:
        while True:
            found = self.names.get(name) or self.producers.get(name)
            shorter = _RENAMED.sub("", name)
            if found is not None or shorter == name:
                return found
            name = shorter


def exported_file(path: Path) -> Path | None:
    """The exported file that an engine is or was built from; None if that file is gone or has changed."""
    if path.suffix == ".onnx":
        return path
    sidecar = read_sidecar(path)
    if sidecar is None:
        return None
    places = [folder / sidecar.parent for folder in (path.parent, path.parent.parent / "export")]
    return next((file for file in places if file.is_file() and file_sha256(file) == sidecar.parent_sha256), None)
