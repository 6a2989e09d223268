"""Runs in a process of its own, where stub libraries stand in for libnvinfer: tells what the real bindings have.

Reads ``{"paths": ["Logger", ...], "members": {"Builder": ["create_network", ...]}}``; writes the version, which of the
paths exist, and the docstring (pybind11's signature) of each member, or null.
"""

from __future__ import annotations

import json
import sys
from functools import reduce

import tensorrt_bindings as trt

from compress.engines.tensorrt import make_logger

MISSING = object()

if __name__ == "__main__":
    asked = json.load(sys.stdin)
    errors: list[str] = []
    logger = make_logger(trt, errors)
    logger.log(trt.ILogger.Severity.WARNING, "a warning")
    logger.log(trt.ILogger.Severity.ERROR, "an error")
    found = {
        "version": trt.__version__,
        "paths": {
            path: reduce(lambda owner, name: getattr(owner, name, MISSING), path.split("."), trt) is not MISSING
            for path in asked["paths"]
        },
        "members": {
            owner: {
                name: getattr(getattr(trt, owner), name).__doc__ or "" if hasattr(getattr(trt, owner), name) else None
                for name in names
            }
            for owner, names in asked["members"].items()
        },
        "strongly_typed": int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED),
        "errors": errors,
        "float32": str(trt.nptype(trt.DataType.FLOAT)),
    }
    json.dump(found, sys.stdout)
