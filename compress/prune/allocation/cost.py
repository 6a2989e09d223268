"""The MACs and parameters of any widths, computed without building the network."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike
from torch import nn

from compress.graph.groups import Coupling, Slot
from compress.graph.segments import Segment
from compress.models.cost import Cost, count, layer_macs
from compress.models.layers import size_of

Array = npt.NDArray[np.float64]


class WidthCost:
    """MACs and parameters as functions of how many units each group keeps.

    A layer with o outputs that read i inputs each costs

        macs = positions k^2 i o,    params = k^2 i o + [bias] o,

    and i and o are linear in the units kept (in a grouped convolution i is fixed), so that many assignments are
    evaluated by two matrix products.

    Args:
        shape: of one image (C, H, W).
    """

    def __init__(self, net: nn.Module, coupling: Coupling, shape: Sequence[int]) -> None:
        layers = {name: layer for name, module in net.named_modules() if (layer := size_of(module)) is not None}
        self._rows = rows = {name: row for row, name in enumerate(layers)}
        self._groups = [group.name for group in coupling]
        self.full: Array = np.array([group.units for group in coupling], dtype=np.float64)
        self._out: Array = np.zeros((len(layers), len(coupling.groups)))
        self._in: Array = np.zeros_like(self._out)
        for column, group in enumerate(coupling):
            ungrouped = [slot for slot in group.readers if slot.layer in layers and not layers[slot.layer].grouped]
            for matrix, slots in ((self._out, (*group.writers, *group.norms)), (self._in, ungrouped)):
                for slot in slots:
                    if slot.layer in rows:
                        matrix[rows[slot.layer], column] += _per_unit(slot)

        inputs, outputs, kernel, per_output = (
            np.array([layer[field] for layer in layers.values()], dtype=np.float64) for field in range(4)
        )
        macs = layer_macs(net, shape)
        self._macs_a_pair: Array = np.array([macs.get(name, 0) for name in layers]) / np.maximum(inputs * outputs, 1)
        self._params_a_pair, self._params_an_output = kernel, per_output
        self._out_fixed: Array = outputs - self._out @ self.full
        self._in_fixed: Array = inputs - self._in @ self.full
        dense = count(net, shape)
        macs_full, params_full = self._sums(self.full[None])
        self._macs_fixed, self._params_fixed = dense.macs - macs_full[0], dense.params - params_full[0]

    def batch(self, units: Array) -> tuple[Array, Array]:
        """MACs (B,) and parameters (B,) of B assignments (B, groups) of units kept."""
        macs, params = self._sums(units)
        return macs + self._macs_fixed, params + self._params_fixed

    def of(self, units: Array, removed: Collection[Segment] = ()) -> Cost:
        """The cost of one assignment (groups,) without the removed segments."""
        macs, params = self.batch(units[None])
        less = [self.segment(segment, dict(zip(self._groups, units, strict=True))) for segment in removed]
        return Cost(round(macs[0] - sum(float(m) for m, _ in less)), round(params[0] - sum(float(p) for _, p in less)))

    def segment(self, segment: Segment, units: Mapping[str, ArrayLike]) -> tuple[Array, Array]:
        """MACs and parameters of the layers of a segment.

        Args:
            units: kept of each of its groups, arrays that broadcast.
        """
        macs: Array = np.zeros(())
        params: Array = np.zeros(())
        columns = [(self._groups.index(name), np.asarray(units[name], dtype=np.float64)) for name in segment.groups]
        for layer in segment.layers:
            row = self._rows.get(layer)
            if row is None:  # an option A shortcut costs neither
                continue
            outputs = self._out_fixed[row] + sum(self._out[row, column] * count for column, count in columns)
            inputs = self._in_fixed[row] + sum(self._in[row, column] * count for column, count in columns)
            macs = macs + self._macs_a_pair[row] * outputs * inputs
            params = params + self._params_a_pair[row] * outputs * inputs + self._params_an_output[row] * outputs
        return macs, params

    def _sums(self, units: Array) -> tuple[Array, Array]:
        outputs = units @ self._out.T + self._out_fixed
        pairs = outputs * (units @ self._in.T + self._in_fixed)
        return pairs @ self._macs_a_pair, pairs @ self._params_a_pair + outputs @ self._params_an_output


def _per_unit(slot: Slot) -> int:
    return len(slot.channels[0])
