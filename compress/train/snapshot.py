"""The state file that lets a killed training go on where it stopped."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compress.errors import PipelineError
from compress.train.history import Epoch

Weights = dict[str, Tensor]


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
        temporary = self.path.with_suffix(".tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, temporary)
            temporary.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            temporary.unlink(missing_ok=True)
            reason = str(error).splitlines()[0]
            raise PipelineError(
                f"cannot write the training state {self.path}: {reason}", remedy="is the disk full or read-only?"
            ) from None

    def load(self, device: torch.device) -> tuple[list[Epoch], Weights] | None:
        """Restore the parts; returns the epochs done and the best weights.

        None where the file is absent, damaged or of another job: the training then starts over, to the same result.
        """
        try:
            content = torch.load(self.path, map_location=device, weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
            return None
        if content["job"] != self.job:
            return None
        for name, part in self.parts.items():
            part.load_state_dict(content["parts"][name])
        return [Epoch(**row) for row in content["rows"]], content["best"]
