"""A trained network with all that it needs to run elsewhere: saved as tensors and JSON, never pickled."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from calibration.preprocess import Preprocess
from compress.errors import CheckpointError
from compress.models.checkpoint import own_names, under_all_names
from compress.models.registry import build
from compress.models.shapes import describe, reshape
from compress.run import read_json, write_atomic, write_json

FORMAT = 1
TENSORS = "model.safetensors"


@dataclass(frozen=True)
class Model:
    """A network, how to rebuild it, what it eats and what it says.

    Attributes:
        net: in eval mode, float32, on the CPU.
        arch, args: what ``registry.build`` makes it from (before any channel was removed).
        preprocess: what an input image goes through.
        classes: name of each logit; empty for a backbone.
    """

    net: nn.Module
    arch: str
    preprocess: Preprocess
    classes: tuple[str, ...] = ()
    args: Mapping[str, Any] = field(default_factory=dict)

    def clone(self, net: nn.Module | None = None) -> Model:
        """The same model around ``net``, or around a deep copy of its own."""
        net = copy.deepcopy(self.net) if net is None else net
        return Model(net.eval(), self.arch, self.preprocess, self.classes, self.args)

    def example(self, batch: int = 1) -> torch.Tensor:
        """A seeded random input (batch, C, H, W)."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, *self.preprocess.shape, generator=generator)


def save_model(model: Model, folder: Path) -> None:
    """Write ``folder/model.safetensors`` and ``folder/model.json``; a shared tensor goes under its first name."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = model.net.state_dict()
    names = [first for first, *_ in own_names(model.net)]
    # Copies, because safetensors refuses tensors that share memory.
    state = {name: tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format) for name in names}
    write_atomic(folder / TENSORS, save(state))
    record = {
        "format": FORMAT,
        "arch": model.arch,
        "args": dict(model.args),
        "preprocess": model.preprocess.to_json(),
        "classes": model.classes,
        "layers": describe(model.net),
    }
    write_json(folder / "model.json", record)


def load_model(folder: Path) -> Model:
    """Read what ``save_model`` wrote. Built-in families need no class file; a user's own needs its factory.

    Raises:
        CheckpointError: a file is missing, truncated, of a later format, or does not fit its description.
    """
    record = read_json(folder / "model.json")
    if record.get("format") != FORMAT:
        raise CheckpointError(f"{folder / 'model.json'} has format {record.get('format')}, this version reads {FORMAT}")
    net = build(record["arch"], len(record["classes"]) or None, record["args"])
    reshape(net, record["layers"])
    path = folder / TENSORS
    try:
        net.load_state_dict(under_all_names(net, load_file(path)))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"cannot load {path}: {error}", remedy="run the stage that wrote it again") from None
    preprocess = Preprocess.from_json(record["preprocess"])
    return Model(net.eval(), record["arch"], preprocess, tuple(record["classes"]), record["args"])
