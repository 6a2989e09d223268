"""Where engines run: on a processor or on a GPU."""

from __future__ import annotations

from compress.registries import BACKENDS


def on_gpu(engine: str | None) -> bool:
    """Whether an engine's files run on a GPU if nothing else is asked for; False for an engine that is not known here.

    >>> on_gpu("tensorrt-rtx"), on_gpu("openvino"), on_gpu(None)
    (True, False, False)
    """
    return engine is not None and engine in BACKENDS and BACKENDS[engine].device == "cuda"
