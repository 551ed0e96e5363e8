"""GeneralizedAssignment against enumeration."""

import itertools

import numpy as np
import pytest
import torch

from difflayers.errors import InfeasibleError
from difflayers.oracles import GeneralizedAssignment, Status

from .enumeration import SCALES, assert_anytime, assert_optimal, least


def assignments(weights, capacities):
    """(points, items, bins): all that fit."""
    items, bins = len(weights), len(capacities)
    weights = np.broadcast_to(np.asarray(weights).reshape(items, -1), (items, bins))
    points = np.array([np.eye(bins)[list(choice)] for choice in itertools.product(range(bins), repeat=items)])
    return points[((points * weights).sum(1) <= np.asarray(capacities) + 1e-9).all(1)]


@pytest.mark.parametrize("seed", range(8))
def test_equals_enumeration(seed):
    random = np.random.default_rng(seed)
    items, bins = int(random.integers(1, 7)), int(random.integers(1, 4))
    shape = (items, bins) if seed % 2 else (items,)
    weights = random.integers(1, 9, shape)
    capacities = np.full(bins, int(np.ceil(weights.sum() / weights.size * items / bins * 1.4)) + 2)
    if seed % 3 == 0:
        weights, capacities = weights / 10, capacities / 10
    points = assignments(weights, capacities)
    if len(points):
        assert_optimal(GeneralizedAssignment(weights, capacities), points, random.normal(size=(4, items, bins)))
    else:
        with pytest.raises(InfeasibleError):
            GeneralizedAssignment(weights, capacities).solve(torch.zeros(items, bins))


def test_costs_of_any_scale():
    oracle, random = GeneralizedAssignment([2, 3, 4, 1], [5, 6]), np.random.default_rng(0)
    for scale in SCALES:
        assert_optimal(oracle, assignments([2, 3, 4, 1], [5, 6]), random.normal(size=(2, 4, 2)) * scale)
    assert_optimal(oracle, assignments([2, 3, 4, 1], [5, 6]), np.zeros((1, 4, 2)))


def test_large_weights_are_exact():
    """One unit too much is within SCIP's relative tolerance."""
    weights, capacities = np.array([10**9 + 1, 10**9, 10**9, 5]), np.array([2 * 10**9 + 5, 2 * 10**9])
    costs = np.array([[[0.0, 9.0], [0.0, 8.0], [7.0, 0.0], [0.0, 1.0]]])
    points = assignments(weights, capacities)
    relaxed = assignments(weights, capacities + 1)
    assert least(relaxed, costs[0]) < least(points, costs[0])
    assert_optimal(GeneralizedAssignment(weights, capacities), points, costs)


def test_each_row_its_own_bins():
    random = np.random.default_rng(0)
    costs = random.normal(size=(3, 4, 2))
    weights, capacities = random.integers(1, 4, (3, 4)), np.array([[6, 6], [1, 1], [20, 20]])
    oracle = GeneralizedAssignment(np.ones(4, dtype=int), [4, 4], on_failure="nan")
    result = oracle.with_parameters(weights=weights, capacities=capacities).solve_batch(torch.from_numpy(costs))
    assert result.status.tolist() == [Status.OPTIMAL, Status.INFEASIBLE, Status.OPTIMAL]
    for row in (0, 2):
        points = assignments(weights[row], capacities[row])
        assert result.objective[row].item() == pytest.approx(least(points, costs[row]), abs=1e-9)
    strict = GeneralizedAssignment([1, 1], [2, 2]).with_parameters(capacities=np.array([[2, 2], [-1, 2], [0, 1]]))
    with pytest.raises(InfeasibleError, match="2 of 3 rows have no solution: rows 1, 2"):
        strict.solve(torch.zeros(3, 2, 2))


def test_time_limit():
    random = np.random.default_rng(0)
    weights = random.integers(5, 30, (60, 8))
    capacities = np.full(8, int(weights.mean() * 60 / 8 * 1.3))
    costs = (40.0 - weights + random.normal(size=(60, 8)))[None]
    for seconds in (0.5, 1e-9):
        result = assert_anytime(GeneralizedAssignment(weights, capacities, time_limit=seconds), costs)
    assert result.status == Status.FEASIBLE
    tight = GeneralizedAssignment([3, 3, 2, 2, 2], [6, 6], on_failure="nan")
    costs = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert tight.solve_batch(costs).status == Status.OPTIMAL
    tight.time_limit = 1e-9  # and no greedy assignment fits
    assert tight.solve_batch(costs).status == Status.TIMEOUT


def test_one_and_none():
    assert GeneralizedAssignment([], [1, 2]).solve(torch.zeros(3, 0, 2)).shape == (3, 0, 2)
    assert GeneralizedAssignment([1], [1]).solve(torch.tensor([[3.0]])).tolist() == [[1.0]]
    empty = GeneralizedAssignment(np.ones(2, dtype=int), np.zeros(0, dtype=int), on_failure="nan")
    assert empty.solve_batch(torch.zeros(2, 0)).status == Status.INFEASIBLE


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([1, 2], 3), "must have shape"),
        ((1, [3]), "must have shape"),
        (([[1, 2], [1, 2]], [3, 3, 3]), "must have shape"),
        (([-1, 2], [3]), "'weights' must not be negative"),
        (([1, 2], [-3]), "'capacities' must not be negative"),
        (([1.0, float("inf")], [3]), "'weights' must be finite"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        GeneralizedAssignment(*arguments)
