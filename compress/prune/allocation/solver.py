"""Exact minimisation of a loss under limits on additive costs. It works on numbers only and knows nothing of networks.

Each **variable** takes one of its candidates, at a loss. Each **term** costs what the candidates of a few variables
make it cost; some terms can be removed, at a loss. With a grid on the costs, the least loss at *every* limit follows
from one pass of bucket elimination (Dechter 1999, "Bucket elimination: a unifying framework for reasoning"): the
variables are eliminated one after another; eliminating them leaves a table over the variables that they share terms
with and over the grid. Tables are joined by min-plus convolution along the grid (``minplus``).

Time grows exponentially only in how many variables such a table spans; for the chain of streams that a ResNet is, two.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from compress.prune.allocation.minplus import Cell, Table, convolve, corners, join

Array = npt.NDArray[np.float64]
Index = tuple[Any, ...]


@dataclass(frozen=True)
class Term:
    """A summand of the costs.

    Attributes:
        variables: indices of those that it depends on.
        costs: (resources, candidates of the first, of the second, ...), none negative.
        removal: the loss of doing without it, in place of its costs and of the losses of variables that occur in no
            other term; None: it stays.
    """

    variables: tuple[int, ...]
    costs: Array
    removal: float | None = None


@dataclass(frozen=True)
class Choice:
    """A candidate of each variable, and the terms that go, by index."""

    candidates: tuple[int, ...]
    removed: frozenset[int]


@dataclass(frozen=True)
class Problem:
    """What to choose from.

    Attributes:
        losses: (candidates,) of each variable.
        terms: each variable occurs in one at least.
    """

    losses: tuple[Array, ...]
    terms: tuple[Term, ...]

    @cached_property
    def inner(self) -> tuple[tuple[int, ...], ...]:
        """Of each term, the variables that occur in no other."""
        uses = [variable for term in self.terms for variable in term.variables]
        return tuple(tuple(v for v in term.variables if uses.count(v) == 1) for term in self.terms)

    def cost(self, choice: Choice) -> Array:
        """(resources,)"""
        total = np.zeros(len(self.terms[0].costs))
        for index, term in enumerate(self.terms):
            if index not in choice.removed:
                place: Index = (slice(None), *(choice.candidates[v] for v in term.variables))
                total += term.costs[place]
        return total

    def loss(self, choice: Choice) -> float:
        """Of the candidates that matter, and of the removals."""
        gone = {v for index in choice.removed for v in self.inner[index]}
        kept = sum(float(loss[choice.candidates[v]]) for v, loss in enumerate(self.losses) if v not in gone)
        return kept + sum(self.terms[index].removal or 0.0 for index in choice.removed)


def least(problem: Problem, resource: int) -> Choice:
    """The choice with the least cost, ignoring its loss."""
    leaves = []
    for index, term in enumerate(problem.terms):
        costs = term.costs[resource]
        removal = None if term.removal is None else 0.0
        leaves.append(
            _Leaf(index, term, problem.inner[index], np.zeros_like(costs[None], np.int64), costs, removal, (1,))
        )
    return _choice(_eliminate([np.zeros_like(loss) for loss in problem.losses], leaves), problem, (0,))


def solve(problem: Problem, limits: npt.ArrayLike, resolution: int) -> Solution:
    """The least loss at every limit up to ``limits`` (resources,), on a grid of ``resolution`` steps of each resource.

    Costs are rounded to the nearest step, so that the errors of the terms cancel; ``Solution.best`` checks the true
    cost. With costs that are whole steps the answer is exact.

    Raises:
        ValueError: a negative cost.

    >>> halves = Term((0,), np.array([[1.0, 2.0]]))
    >>> problem = Problem((np.array([0.5, 0.0]),), (halves,))
    >>> problem.loss(solve(problem, [1.0], resolution=4).best([1.0]))
    0.5
    """
    bounds = np.asarray(limits, dtype=np.float64)
    step = np.where(bounds > 0, bounds / resolution, 1.0)
    above = math.isqrt(len(problem.terms)) + 1  # steps beyond the limit: sums that were rounded up may be within it
    cells = (resolution + above,) * len(step)
    leaves = []
    for index, term in enumerate(problem.terms):
        if not (term.costs >= 0).all():
            raise ValueError(f"term {index} has negative costs")
        inner = problem.inner[index]
        steps = np.rint(term.costs / step.reshape(-1, *[1] * len(term.variables))).astype(np.int64)
        losses = np.zeros(term.costs.shape[1:])
        for axis, variable in enumerate(term.variables):
            if variable in inner:
                losses += problem.losses[variable].reshape(-1, *[1] * (len(term.variables) - axis - 1))
        leaves.append(_Leaf(index, term, inner, steps, losses, term.removal, cells))
    inside = {variable for inner in problem.inner for variable in inner}
    losses_outside = [np.zeros_like(loss) if v in inside else loss for v, loss in enumerate(problem.losses)]
    return Solution(problem, step, _eliminate(losses_outside, leaves))


@dataclass(frozen=True)
class Solution:
    """The least losses on the grid, and the choices behind them."""

    problem: Problem
    step: Array
    root: _Bucket

    @property
    def losses(self) -> Table:
        """Least loss with at most that many steps of each resource; infinite where nothing costs so little."""
        return self.root.table

    def best(self, limits: npt.ArrayLike) -> Choice | None:
        """The choice of least loss that truly obeys the limits, among those of the cells within the rounding error.

        Where the grid has none, the limit being so close to what is possible at all, the choice that costs least.
        None if that does not obey the limits either, which with one resource means that nothing does.
        """
        bounds = np.asarray(limits, dtype=np.float64)
        margin = -(-len(self.problem.terms) // 2)  # rounding moves a sum by half a step a term at most
        nominal = np.floor(bounds / self.step + 1e-9).astype(int)
        lowest = np.maximum(nominal - margin, 0)
        near = self.losses[tuple(slice(a, b) for a, b in zip(lowest, nominal + margin + 1, strict=True))]
        cells = (tuple((lowest + corner).tolist()) for corner in sorted(corners(near), key=near.__getitem__))
        on_grid = (_choice(self.root, self.problem, cell) for cell in cells)
        cheapest = (least(self.problem, resource) for resource in range(len(bounds)))
        for choice in itertools.chain(on_grid, cheapest):
            if within(self.problem.cost(choice), bounds):
                return _widened(self.problem, choice, bounds)
        return None


def within(cost: Array, bounds: Array) -> bool:
    """Whether every cost is within its bound, but for floating-point error."""
    return bool((cost <= bounds + 1e-12 * np.abs(bounds)).all())


def _widened(problem: Problem, choice: Choice, bounds: Array) -> Choice:
    """Spend what rounding left of the limits: the one change that gains most and still fits, again and again."""
    while True:
        loss, changes = problem.loss(choice), []
        for variable, losses in enumerate(problem.losses):
            for candidate in np.flatnonzero(losses < losses[choice.candidates[variable]]).tolist():
                at = (*choice.candidates[:variable], candidate, *choice.candidates[variable + 1 :])
                changes.append(Choice(at, choice.removed))
        gains = sorted((gained, k) for k, other in enumerate(changes) if (gained := problem.loss(other)) < loss)
        fitting = (changes[k] for _, k in gains if within(problem.cost(changes[k]), bounds))
        better = next(fitting, None)
        if better is None:
            return choice
        choice = better


class _Factor(Protocol):
    """A table over some variables and the grid, and how its entries came about."""

    variables: tuple[int, ...]
    table: Table

    def resolve(self, at: dict[int, int], cell: Cell, removed: set[int]) -> None:
        """Set in ``at`` (and ``removed``) what the entry at ``at`` and ``cell`` stands for."""


class _Leaf:
    """A term: its table spans the variables that it shares; the others are minimised over."""

    def __init__(
        self,
        index: int,
        term: Term,
        inner: Collection[int],
        steps: npt.NDArray[np.int64],
        losses: Array,
        removal: float | None,
        cells: Cell,
    ) -> None:
        """``steps`` (resources, *candidates) and ``losses`` (*candidates) of the term's variables."""
        self.index, self.removal = index, removal
        shared = [axis for axis, v in enumerate(term.variables) if v not in inner]
        own = [axis for axis, v in enumerate(term.variables) if v in inner]
        self.variables = tuple(term.variables[axis] for axis in shared)
        self.inner = tuple(term.variables[axis] for axis in own)
        self.sizes = tuple(losses.shape[axis] for axis in own)
        outer = tuple(losses.shape[axis] for axis in shared)
        self.losses = losses.transpose(*shared, *own).reshape(*outer, -1)
        self.steps = steps.transpose(0, *(1 + axis for axis in (*shared, *own))).reshape(len(steps), *outer, -1)
        table = np.full((*outer, *cells), np.inf, dtype=np.float32)
        fits = (self.steps < np.reshape(cells, (-1, *[1] * self.losses.ndim))).all(0)
        where = np.nonzero(fits)
        reached: Index = (slice(None), *where)
        np.minimum.at(table, (*where[:-1], *self.steps[reached]), self.losses[where].astype(np.float32))
        if removal is not None:
            origin: Index = (..., *[0] * len(cells))
            table[origin] = np.minimum(table[origin], removal)
        for axis in range(len(outer), table.ndim):
            np.minimum.accumulate(table, axis=axis, out=table)
        self.table: Table = table

    def resolve(self, at: dict[int, int], cell: Cell, removed: set[int]) -> None:
        place = tuple(at[v] for v in self.variables)
        steps: Index = (slice(None), *place)
        fits = (self.steps[steps] <= np.reshape(cell, (-1, 1))).all(0)
        losses = np.where(fits, self.losses[place], np.inf)
        best = int(np.argmin(losses))
        if self.removal is not None and self.removal <= losses[best]:
            removed.add(self.index)
        else:
            at.update(zip(self.inner, map(int, np.unravel_index(best, self.sizes)), strict=True))


class _Bucket:
    """What joining all factors with a variable, and minimising over it, leaves; with no variable, their sum."""

    def __init__(self, variable: int | None, losses: Array | None, factors: Sequence[_Factor]) -> None:
        self.variable = variable
        self.factors = sorted(factors, key=lambda factor: len(factor.variables))
        scope, table = reduce(join, [(factor.variables, factor.table) for factor in self.factors])
        if variable is None or losses is None:
            self.variables, self.table, self.best = scope, table, None
        else:
            axis = scope.index(variable)
            table = table + losses.astype(np.float32).reshape(-1, *[1] * (table.ndim - axis - 1))
            self.variables = tuple(v for v in scope if v != variable)
            self.best = table.argmin(axis).astype(np.int32)
            self.table = np.take_along_axis(table, self.best[(slice(None),) * axis + (None,)], axis).squeeze(axis)

    def resolve(self, at: dict[int, int], cell: Cell, removed: set[int]) -> None:
        if self.variable is not None and self.best is not None:
            at[self.variable] = int(self.best[(*(at[v] for v in self.variables), *cell)])
        upto = tuple(slice(size + 1) for size in cell)
        rows = []
        for factor in self.factors:
            place: Index = (*(at[v] for v in factor.variables), *upto)
            rows.append(factor.table[place])
        sums = list(itertools.accumulate(rows, convolve))
        for index in range(len(rows) - 1, 0, -1):  # how the budget is split between this factor and those before
            rest, row = sums[index - 1], rows[index]
            affordable = row[tuple(slice(size + 1) for size in cell)]
            spent = min(corners(affordable), key=lambda c: row[c] + _before(rest, cell, c))
            self.factors[index].resolve(at, spent, removed)
            cell = tuple(total - part for total, part in zip(cell, spent, strict=True))
        self.factors[0].resolve(at, cell, removed)


def _eliminate(losses: Sequence[Array], leaves: Sequence[_Factor]) -> _Bucket:
    """Always next the variable whose bucket spans the smallest table."""
    factors = list(leaves)
    sizes = [len(loss) for loss in losses]
    left = {v for factor in factors for v in factor.variables}

    def scope(variable: int) -> set[int]:
        return {v for factor in factors if variable in factor.variables for v in factor.variables}

    while left:
        variable = min(left, key=lambda v: (int(np.prod([sizes[u] for u in scope(v)])), v))
        bucket = _Bucket(variable, losses[variable], [f for f in factors if variable in f.variables])
        factors = [f for f in factors if variable not in f.variables] + [bucket]
        left.remove(variable)
    return _Bucket(None, None, factors)


def _choice(root: _Bucket, problem: Problem, cell: Cell) -> Choice:
    at: dict[int, int] = {}
    removed: set[int] = set()
    root.resolve(at, cell, removed)
    free = (int(np.argmin(loss)) for loss in problem.losses)  # of variables in no term, or in removed ones only
    return Choice(tuple(at.get(v, candidate) for v, candidate in enumerate(free)), frozenset(removed))


def _before(table: Table, cell: Cell, spent: Cell) -> float:
    return float(table[tuple(total - part for total, part in zip(cell, spent, strict=True))])
