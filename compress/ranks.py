"""What a process needs to know of the other processes that torchrun started; a single process is its own leader."""

from __future__ import annotations

import os
import re
from datetime import timedelta


def processes() -> int:
    """How many processes torchrun has started together; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Whether this is the process that prints messages."""
    return os.environ.get("RANK", "0") == "0" or processes() == 1


def first_to_speak() -> bool:
    """Whether no other process has reported an error yet: the same mistake often ends all processes at once."""
    if processes() == 1:
        return True
    from torch import distributed  # takes seconds, and one process does not need it

    try:  # torchrun keeps this store, and outlives its processes
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = distributed.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))  # type: ignore[attr-defined]
        return bool(store.add(f"resnet-compress-said-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1)
    except (KeyError, ValueError, RuntimeError):
        return True


_LOST = re.compile(r"closed by peer|reset by peer|remote worker|broken pipe|NCCL|connection refused", re.IGNORECASE)


def lost_another(error: BaseException) -> bool:
    """Whether an error is one that a process gets when another one of torchrun's processes has died."""
    return processes() > 1 and isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None
