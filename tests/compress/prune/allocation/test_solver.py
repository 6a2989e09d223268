"""The dynamic programme against brute force."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.prune.allocation.solver import Choice, Problem, Term, least, solve


@st.composite
def problems(draw, resources):
    """Up to five variables of up to four candidates, in terms of up to three variables: any interaction graph."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    terms = []
    for _ in range(draw(st.integers(1, 5))):
        variables = generator.permutation(len(sizes))[: generator.integers(0, 4)]
        costs = generator.integers(0, 9, (resources, *(sizes[v] for v in variables))).astype(float)
        removal = float(generator.integers(0, 9)) if generator.random() < 0.4 else None
        terms.append(Term(tuple(variables.tolist()), costs, removal))
    unused = set(range(len(sizes))) - {v for term in terms for v in term.variables}
    terms += [Term((v,), np.zeros((resources, sizes[v]))) for v in unused]
    return Problem(tuple(generator.integers(0, 9, size).astype(float) for size in sizes), tuple(terms))


def choices(problem):
    """All of them, with cost and loss."""
    optional = [index for index, term in enumerate(problem.terms) if term.removal is not None]
    for candidates in itertools.product(*(range(len(loss)) for loss in problem.losses)):
        for count in range(len(optional) + 1):
            for removed in itertools.combinations(optional, count):
                choice = Choice(candidates, frozenset(removed))
                yield problem.cost(choice), problem.loss(choice)


def rescaled(problem, how):
    return Problem(problem.losses, tuple(Term(t.variables, how(t.costs), t.removal) for t in problem.terms))


@settings(max_examples=150, deadline=None)
@given(problem=problems(1), limit=st.integers(1, 40))
def test_it_equals_brute_force_at_every_limit(problem, limit):
    everything = list(choices(problem))
    solution = solve(problem, [limit], resolution=limit)
    for budget in range(limit + 1):
        expected = min((loss for cost, loss in everything if cost[0] <= budget), default=np.inf)
        assert solution.losses[budget] == expected
        found = solution.best([budget])
        if found is None:
            assert expected == np.inf
        else:
            assert problem.loss(found) == expected
            assert problem.cost(found)[0] <= budget


@settings(max_examples=60, deadline=None)
@given(problem=problems(2), first=st.integers(1, 15), second=st.integers(1, 15))
def test_two_limits_at_once(problem, first, second):
    """On one grid for both, whose step divides every cost."""
    scales = np.array([first, second], dtype=float)
    scaled = rescaled(problem, lambda costs: costs * scales.reshape(2, *[1] * (costs.ndim - 1)))
    limits = [first * 20.0, second * 20.0]
    expected = min((loss for cost, loss in choices(scaled) if (cost <= limits).all()), default=None)
    found = solve(scaled, limits, resolution=20).best(limits)
    assert (None if found is None else scaled.loss(found)) == expected
    assert found is None or (scaled.cost(found) <= limits).all()


@settings(max_examples=60, deadline=None)
@given(problem=problems(2), resource=st.integers(0, 1))
def test_the_least_cost(problem, resource):
    expected = min(cost[resource] for cost, _ in choices(problem))
    assert problem.cost(least(problem, resource))[resource] == expected


@settings(max_examples=60, deadline=None)
@given(problem=problems(1), share=st.floats(0.1, 1.0), seed=st.integers(0, 99))
def test_limits_hold_for_costs_between_the_steps_of_the_grid(problem, share, seed):
    generator = np.random.default_rng(seed)
    uneven = rescaled(problem, lambda costs: costs * generator.uniform(0.5, 1.5, costs.shape))
    everything = list(choices(uneven))
    limit = share * max(cost[0] for cost, _ in everything)
    found = solve(uneven, [limit], resolution=500).best([limit])
    bound = min((loss for cost, loss in everything if cost[0] <= limit * 0.99), default=None)
    if found is not None:
        assert uneven.cost(found)[0] <= limit * (1 + 1e-9)
    if bound is not None:
        assert found is not None
        assert uneven.loss(found) <= bound
