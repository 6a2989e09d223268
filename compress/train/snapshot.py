"""The state file from which a killed training continues."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from compress.errors import PipelineError
from compress.files import write_atomic
from compress.train.history import Epoch

Weights = dict[str, Tensor]
_MAGIC = b"resnet-compress training state 1\n"
_ROWS = TypeAdapter(list[Epoch])
# What training changes in the states of optimizer, schedule and gradient scaler; all else follows from the settings.
_TRAINED = {"lr", "momentum", "betas", "last_epoch", "_step_count", "_last_lr", "scale", "_growth_tracker"}


class Stateful(Protocol):
    """A network, optimizer, schedule or gradient scaler."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


def copy_weights(net: nn.Module) -> Weights:
    """The network's state, detached from further training."""
    return {key: value.detach().clone() for key, value in net.state_dict().items()}


class StateFile:
    """Everything that the next epoch of a training depends on, in one file.

    Args:
        path: written whole or not at all.
        job: what the training answers to; the file of another job is not gone on from.
        parts: what is saved and restored, by name.
    """

    def __init__(self, path: Path, job: str, parts: Mapping[str, Stateful]) -> None:
        self.path = path
        self.job = job
        self.parts = parts

    def save(self, rows: Sequence[Epoch], best: Weights) -> None:
        """Replace the file.

        Raises:
            PipelineError: the disk is full or read-only.
        """
        content = {
            "job": self.job,
            "rows": [asdict(row) for row in rows],
            "best": best,
            "parts": {name: dict(part.state_dict()) for name, part in self.parts.items()},
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        data = buffer.getvalue()
        try:
            write_atomic(self.path, _MAGIC + hashlib.sha256(data).digest() + data)
        except OSError as error:
            raise PipelineError(
                f"cannot write the training state {self.path}: {error.strerror}",
                remedy="is the disk full or read-only?",
            ) from None

    def load(self, device: torch.device) -> tuple[list[Epoch], Weights] | None:
        """Restore the parts; returns the epochs done and the best weights.

        None where the file is absent, damaged or of another job: the training then starts over, to the same result.
        The SHA-256 at its beginning says whether it is what ``save`` wrote; nothing else of it is believed before. What
        it holds must then have the form that the parts have: another version may have written it.
        """
        if (data := self._content()) is None:
            return None
        try:
            content = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
            rows = _ROWS.validate_python(content["rows"])
            best, states = dict(content["best"]), {name: content["parts"][name] for name in self.parts}
            fit = [row.epoch for row in rows] == list(range(len(rows)))
            fit &= all(_fits(part, states[name]) for name, part in self.parts.items())
            fit &= "net" not in self.parts or (bool(rows) and alike(best, self.parts["net"].state_dict()))
            if content["job"] != self.job or not fit:
                return None
        except Exception:  # what another version has written makes the unpickler raise nearly anything
            return None
        for name, part in self.parts.items():
            part.load_state_dict(states[name])
        return rows, best

    def _content(self) -> bytes | None:
        """What ``save`` has written, without the digest at its beginning; None where there is no such file."""
        digest = hashlib.sha256().digest_size
        try:
            if not self.path.is_file():  # opening a pipe would wait for a writer
                return None
            with self.path.open("rb") as file:
                start = file.read(len(_MAGIC) + digest)
                if start[:-digest] != _MAGIC:  # before a large file of something else is read
                    return None
                data = file.read()
        except OSError:
            return None
        return data if start == _MAGIC + hashlib.sha256(data).digest() else None


def _fits(part: Stateful, state: Any) -> bool:
    """Whether a part can take a state and go on from it."""
    own = part.state_dict()
    if not isinstance(part, Optimizer):
        return alike(state, own)
    if not alike(state["param_groups"], own["param_groups"]):
        return False
    tensors = [tensor for group in part.param_groups for tensor in group["params"]]
    wanted = {"step", "exp_avg", "exp_avg_sq"} if isinstance(part, Adam | AdamW) else {"momentum_buffer"}
    return all(
        kept.keys() == wanted
        and all(
            value is None or alike(value, tensors[index] if value.ndim else torch.zeros(())) for value in kept.values()
        )
        for index, kept in state["state"].items()
    )


def alike(found: Any, own: Any, *, fixed: bool = True) -> bool:
    """Whether a state has the form of another: its keys, its tensors' types and shapes, and what no training changes.

    Args:
        fixed: numbers must be equal too.
    """
    if isinstance(own, Tensor):
        same = isinstance(found, Tensor) and found.layout is own.layout and not found.is_quantized
        return same and (found.shape, found.dtype) == (own.shape, own.dtype)
    if isinstance(own, Mapping):
        same = isinstance(found, Mapping) and found.keys() == own.keys()
        return same and all(alike(found[key], own[key], fixed=fixed and key not in _TRAINED) for key in own)
    if isinstance(own, list | tuple):
        same = isinstance(found, list | tuple) and len(found) == len(own)
        return same and all(alike(*each, fixed=fixed) for each in zip(found, own, strict=True))
    if fixed:
        return bool(found == own)
    return type(found) in (int, float) and math.isfinite(found)
