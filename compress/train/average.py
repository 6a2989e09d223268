"""An average of the weights over the steps of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

_GROWS = 10  # early on, the average is over about the last tenth of the steps


class Average:
    """Exponential moving average of a network's weights and statistics (Polyak and Juditsky 1992).

    The decay grows from 0.1 to the one given, min(decay, (1 + n) / (10 + n)) at step n, so that a short training is
    not dominated by its beginning.

    Args:
        net: on the device where it is trained.
        decay: 0 to 1: the weight of the past at each step.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self._source = net
        self._averaged = AveragedModel(net, multi_avg_fn=self._mix, use_buffers=True)
        self._averaged.update_parameters(net)  # the first is a copy
        self._decay = decay

    @property
    def net(self) -> nn.Module:
        """The network with the averaged weights."""
        return self._averaged.module

    def update(self) -> None:
        """Take in the weights after a step."""
        self._averaged.update_parameters(self._source)

    def state_dict(self) -> Mapping[str, Any]:
        return self._averaged.state_dict()

    def load_state_dict(self, state_dict: Any) -> Any:
        return self._averaged.load_state_dict(state_dict)

    def _mix(self, averaged: Any, current: Any, steps: Tensor | int) -> None:
        share = 1 - min(self._decay, float(1 + steps) / float(_GROWS + steps))
        for mine, its in zip(averaged, current, strict=True):
            if mine.is_floating_point():
                mine.lerp_(its.to(mine.device), share)
            else:
                mine.copy_(its)
