"""Open an untrusted file in a separate process first, so that a file that crashes native code does no damage.

``python -m compress.engines.examine FILE`` is that process. It opens the file as its runtime does and runs it once,
with limits on memory and processor time. Ordinary errors are left to the caller, which meets them again and can say
more.
"""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from compress import startup
from compress.engines.base import engine_files, open_engine
from compress.errors import EngineError
from compress.registries import BACKENDS

MEMORY = 4 << 30  # bytes, for a file of up to a sixteenth of that
PROCESSOR_S = 120
WALL_S = 900  # for a hang that uses no processor time; long, since the machine may be loaded
_OPENED = tuple(BACKENDS[name].suffix for name in ("onnxruntime", "openvino"))


def examine(path: Path) -> None:
    """Check that an ONNX or OpenVINO file does not crash, hang or fill the memory of the process that opens it.

    Other files pass: a plan is compiled code, for which the sidecar or the user vouches.

    Raises:
        EngineError: it does; the message says how.
    """
    if path.suffix not in _OPENED or not all(file.is_file() for file in engine_files(path)):
        return
    size = sum(file.stat().st_size for file in engine_files(path))
    memory = max(MEMORY, 16 * size)
    words = ("compress.engines.examine", str(path.resolve()), str(memory), str(PROCESSOR_S))
    command, environment = startup.python("-m", *words), startup.same_path()
    remedy = "the file is damaged or malicious: export it again, or get it again from its source"
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=WALL_S, check=False)
    except subprocess.TimeoutExpired:
        raise EngineError(f"opening {path} did not end within {WALL_S} s", remedy=remedy) from None
    if done.returncode == -signal.SIGXCPU:
        raise EngineError(f"opening {path} took more than {PROCESSOR_S} s of processor time", remedy=remedy)
    if done.returncode == _OUT_OF_MEMORY or b"bad_alloc" in done.stderr:
        raise EngineError(f"opening {path} took more than {memory >> 20} MiB of memory", remedy=remedy)
    if done.returncode:
        name = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
        raise EngineError(f"{path} crashed the process that opened it ({name})", remedy=remedy)


_OUT_OF_MEMORY = 12
_NO_MEMORY = re.compile(
    r"bad_alloc|allocat\w* memory|memory allocat|out of memory", re.IGNORECASE
)  # in the words of any runtime


def _open(path: Path) -> None:
    with open_engine(path) as engine:
        shapes = {spec.name: (tuple(dim or 1 for dim in spec.shape), spec.dtype) for spec in engine.inputs}
        engine.run({name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()})


def main(path: Path, memory: int, processor_s: int) -> int:
    """Open a file under limits; the exit code is 0 unless the process dies."""
    resource.setrlimit(resource.RLIMIT_CPU, (processor_s, processor_s + 1))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _open(path)
    except Exception as error:  # the caller reports it, except for memory, which the caller must not run out of too
        return _OUT_OF_MEMORY if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) else 0
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
