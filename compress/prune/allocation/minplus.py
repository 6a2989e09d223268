"""Min-plus convolution of tables along a grid of budgets:

    (f + g)(x, t) = min over s of f(x, s) + g(x, t - s),

where x stands for some variables and t, s for numbers of steps of each resource.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.float32]
"""(*candidates of some variables, *cells of the grid); never rises with more budget."""

Cell = tuple[int, ...]
Scoped = tuple[tuple[int, ...], Table]
"""A table and its variables."""


def join(left: Scoped, right: Scoped) -> Scoped:
    """The min-plus convolution of two tables at every assignment of the variables of either."""
    (mine, a), (its, b) = left, right
    scope = tuple(dict.fromkeys((*mine, *its)))
    sizes: Mapping[int, int] = {**dict(zip(mine, a.shape, strict=False)), **dict(zip(its, b.shape, strict=False))}
    shape = tuple(sizes[v] for v in scope)
    result = np.empty((*shape, *a.shape[len(mine) :]), dtype=np.float32)
    for place in np.ndindex(shape):
        at = dict(zip(scope, place, strict=True))
        result[place] = convolve(a[tuple(at[v] for v in mine)], b[tuple(at[v] for v in its)])
    return scope, result


def convolve(left: Table, right: Table) -> Table:
    """(cells) x (cells) -> (cells). Both fall with more budget, so that only the corners of one's steps matter."""
    few, many = list(corners(left)), list(corners(right))
    if len(many) < len(few):
        left, right, few = right, left, many
    total = np.full_like(right, np.inf)
    for corner in few:
        after = tuple(slice(c, None) for c in corner)
        upto = tuple(slice(None, size - c) for c, size in zip(corner, right.shape, strict=True))
        np.minimum(total[after], right[upto] + left[corner], out=total[after])
    return total


def corners(table: Table) -> Iterator[Cell]:
    """The cells that are better than all cells with less of any resource."""
    better = np.isfinite(table)
    for axis in range(table.ndim):
        rest = (slice(None),) * axis
        better[(*rest, slice(1, None))] &= table[(*rest, slice(1, None))] < table[(*rest, slice(None, -1))]
    return zip(*(axis.tolist() for axis in np.nonzero(better)), strict=True)
