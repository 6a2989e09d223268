"""Training in several processes: ``torchrun --nproc_per_node=N -m compress baseline ...``.

Every process runs the same code on its share of each batch, gradients are averaged, and only process 0 writes files. A
single process is a world of size 1, for which these functions do nothing; so the training loop is written once.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from compress.errors import BackendAbsent
from compress.ranks import processes
from compress.run import Run

_PATIENCE = timedelta(days=1)  # long, because torchrun ends all processes when one dies


def pick_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device that a config asks for; ``auto`` is a GPU if there is one. Under torchrun: this process's own GPU.

    Raises:
        BackendAbsent: the config asks for ``cuda`` and there is no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendAbsent("device 'cuda' was asked for, but PyTorch sees no GPU", remedy="set the device to 'auto'")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 numbers in units of its own, which makes a training faster.

    On a CPU these are AVX512-BF16 and AMX; what ARM's would gain has not been measured.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@dataclass(frozen=True)
class World:
    """The processes that train together.

    Attributes:
        device: of this process.
        rank: of this process, from 0.
        size: number of processes.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints messages."""
        return self.rank == 0

    def wrap(self, net: nn.Module) -> nn.Module:
        """``net`` with its gradients averaged over the processes in each backward pass."""
        if self.size == 1:
            return net
        return DistributedDataParallel(net, device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def sum(self, value: float) -> float:
        """The sum of ``value`` over all processes."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.item()

    def align(self, net: nn.Module) -> None:
        """Give every process the buffers of process 0: each has collected BN statistics on its own images."""
        if self.size > 1:
            for buffer in net.buffers():
                dist.broadcast(buffer, 0)

    def tell(self, value: Any) -> Any:
        """Return the value that process 0 passed, in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, device=torch.device("cpu"))
        return box[0]


def join(device: torch.device) -> World:
    """Join the processes that torchrun started (NCCL between GPUs, otherwise gloo); without torchrun, a world of one.

    The first call connects the processes until they end: torchrun's store cannot connect them a second time.
    """
    if processes() == 1:
        return World(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=_PATIENCE)
        atexit.register(dist.destroy_process_group)
    return World(device, dist.get_rank(), dist.get_world_size())


def run_stage(
    run: Run,
    name: str,
    work: Callable[[Path, Path], None],
    *,
    device: torch.device,
    settings: Mapping[str, Any],
    parents: Sequence[Path] = (),
) -> Path:
    """``run.stage`` for a job that all processes share: process 0 decides whether it must run, and keeps the output."""
    here = join(device)
    if not here.leads:
        scratch = here.tell(None)
        if scratch is not None:
            with TemporaryDirectory() as unused:
                work(Path(unused), scratch)
        here.tell(None)  # the output is in its place
        return run.folder(name)
    due = False

    def lead(out: Path, scratch: Path) -> None:
        nonlocal due
        due = True
        here.tell(scratch)
        work(out, scratch)

    folder = run.stage(name, lead, settings=settings, parents=parents)
    if not due:
        here.tell(None)
    here.tell(None)
    return folder
