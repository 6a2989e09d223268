"""Runs in a process of its own, where stub libraries may stand in for libnvinfer: tells what the real bindings have.

Reads ``{"paths": ["Logger", ...], "members": {"Builder": ["create_network", ...]}}``; writes the version, which of the
paths exist, and of each member its docstring (pybind11's signature) and whether it can be assigned to, or null.
"""

from __future__ import annotations

import json
import sys
from functools import reduce
from typing import Any, cast

from compress.engines.base import backend
from compress.engines.tensorrt.edition import Edition

trt = cast(Edition, backend(sys.argv[1])).module()
MISSING = object()


def told(owner: str, name: str) -> dict[str, Any] | None:
    member = getattr(getattr(trt, owner), name, None)
    if member is None:
        return None
    return {"doc": member.__doc__ or "", "settable": getattr(member, "fset", None) is not None}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    found = {
        "version": trt.__version__,
        "paths": {
            path: reduce(lambda owner, name: getattr(owner, name, MISSING), path.split("."), trt) is not MISSING
            for path in asked["paths"]
        },
        "members": {owner: {name: told(owner, name) for name in names} for owner, names in asked["members"].items()},
        "float32": str(trt.nptype(trt.DataType.FLOAT)),
    }
    json.dump(found, sys.stdout)
