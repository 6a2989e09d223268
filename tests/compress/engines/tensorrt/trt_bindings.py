"""Where the real bindings are: of TensorRT, without its libraries, and of TensorRT for RTX, with them.

Set TENSORRT_BINDINGS to folders (separated by ':') that hold the bindings, for example those that
``pip install --no-deps --target DIR tensorrt_cu13_bindings==11.4.0.106`` makes, of as many versions as you like.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Bindings:
    """One version of an edition's bindings, and the environment in which a process can import it."""

    edition: str
    version: str
    environment: dict[str, str]


def folders() -> list[Path]:
    given = [Path(part) for part in os.environ.get("TENSORRT_BINDINGS", "").split(os.pathsep) if part]
    spec = importlib.util.find_spec("tensorrt_bindings")
    installed = [Path(spec.origin).parents[1]] if spec is not None and spec.origin else []
    return [folder for folder in [*given, *installed] if (folder / "tensorrt_bindings").is_dir()]


def version_of(folder: Path) -> str:
    text = (folder / "tensorrt_bindings" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'__version__ = "(.*)"', text)
    assert found is not None
    return found[1]
