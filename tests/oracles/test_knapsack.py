"""Knapsack against enumeration, by every method."""

import itertools
import time

import numpy as np
import pytest
import torch

from difflayers.errors import InfeasibleError
from difflayers.oracles import Knapsack, Status

from .enumeration import SCALES, assert_optimal, integer_points

METHODS = ("auto", "dynamic_program", "cp_sat")


def fitting(weights, capacity, upper):
    points = integer_points(upper)
    return points[(points @ np.atleast_2d(weights).T <= np.atleast_1d(capacity) + 1e-9).all(1)]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("constraints", [1, 3])
def test_equals_enumeration(seed, constraints):
    random = np.random.default_rng(seed)
    n = int(random.integers(0, 8))
    weights, capacity = random.integers(0, 9, (constraints, n)), random.integers(0, 25, constraints)
    if seed % 3 == 1:
        weights, capacity = weights / 10, capacity / 10
    upper = random.integers(0, 4, n) if seed % 2 else np.ones(n, dtype=int)
    costs = random.normal(size=(4, n)) - 0.5
    points = fitting(weights, capacity, upper)
    for method in METHODS if constraints == 1 else ("auto", "cp_sat"):
        oracle = Knapsack(weights, capacity, upper=upper, method=method)
        assert_optimal(oracle, points, costs)
    if constraints == 1:
        assert_optimal(Knapsack(weights[0], capacity[0], upper=upper), points, costs)


def test_branch_and_bound_is_tried_and_left(monkeypatch):
    """Whichever method "auto" comes to, the optimum is the same."""
    from difflayers.oracles import knapsack

    random = np.random.default_rng(0)
    weights = random.integers(1, 9, 7)
    costs, points = -random.random((5, 7)), fitting(weights, 17, [1] * 7)
    for few, many, seconds in itertools.product((0, 2**14), (0, 2**22), (1e-9, 0.005)):
        monkeypatch.setattr(knapsack, "FEW_CELLS", few)
        monkeypatch.setattr(knapsack, "MAX_CELLS", many)
        monkeypatch.setattr(knapsack, "BRANCH_SECONDS", seconds)
        assert_optimal(Knapsack(weights, 17), points, costs)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", METHODS)
def test_costs_of_any_scale(scale, method):
    costs = np.array([[-3.0, -2.0, -2.5, 1.0]]) * scale
    assert_optimal(Knapsack([3, 2, 2, 1], 4, method=method), fitting([3, 2, 2, 1], 4, [1] * 4), costs)


def test_capacities_of_any_size():
    """Float tolerances of solvers would let a few units too much pass here."""
    weights, capacity = np.array([10**15 + 1, 10**15, 10**15 - 1]), 2 * 10**15
    for method in ("auto", "cp_sat"):
        solution = Knapsack(weights, capacity, method=method).solve(torch.tensor([-3.0, -2.0, -1.0]))
        assert solution.tolist() == [1.0, 0.0, 1.0]
    assert Knapsack(weights * 1000, capacity * 1000).solve(torch.tensor([-3.0, -2.0, -1.0])).tolist() == [1.0, 0.0, 1.0]
    assert Knapsack([2.0**900, 2.0**899], 2.0**900).solve(torch.tensor([-1.0, -2.0])).tolist() == [0.0, 1.0]


def test_floats_are_decimals():
    costs = torch.tensor([-1.0, -1.0, -1.5])
    assert 0.1 + 0.2 > 0.3
    assert Knapsack([0.1, 0.2, 0.25], 0.3).solve(costs).tolist() == [1.0, 1.0, 0.0]
    single = torch.tensor([0.1, 0.2, 0.25]), torch.tensor(0.3)
    assert Knapsack(*single).solve(costs).tolist() == [1.0, 1.0, 0.0]
    random = np.random.default_rng(0)
    weights = random.random(8)  # no common denominator
    points = fitting(weights, 2.0, [1] * 8)
    assert_optimal(Knapsack(weights, 2.0), points, -random.random((4, 8)))
    assert not Knapsack(weights, np.nextafter(weights.sum(), 0) - 1e-12).solve(-torch.ones(8)).all()


def test_items_that_cost_are_never_taken():
    costs = torch.tensor([[0.0, 1.0, -1.0], [0.0, 0.0, 0.0]])
    for method in METHODS:
        taken = Knapsack([0, 0, 5], 5, method=method).solve(costs)
        assert taken.tolist() == [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_each_row_its_own_knapsack():
    random = np.random.default_rng(0)
    weights, capacity = random.integers(0, 9, (3, 2, 6)), random.integers(5, 20, (3, 2))
    costs = -random.random((3, 2, 6))
    for method in METHODS:
        oracle = Knapsack(np.ones(6, dtype=int), 3, method=method, upper=2)
        solved = oracle.with_parameters(weights=weights, capacity=torch.from_numpy(capacity)).solve(
            torch.from_numpy(costs)
        )
        for index in np.ndindex(3, 2):
            own = Knapsack(weights[index], int(capacity[index]), upper=2)
            own = own.solve(torch.from_numpy(costs[index]))
            assert (solved[index] * torch.from_numpy(costs[index])).sum() == pytest.approx(
                (own * torch.from_numpy(costs[index])).sum().item(), rel=1e-12
            )


def test_rows_without_solution_are_named():
    oracle = Knapsack([1, 2], 2).with_parameters(capacity=np.array([2, -1, 3]))
    with pytest.raises(InfeasibleError, match="rows 1, the first is INFEASIBLE") as caught:
        oracle.solve(-torch.ones(3, 2))
    assert caught.value.rows == [1]
    assert caught.value.solutions[2].tolist() == [1.0, 1.0]
    assert caught.value.solutions[1].isnan().all()


def test_hard_instances_end_in_time():
    """Even weights and an odd capacity: branch and bound never ends, and holds the interpreter's lock."""
    weights = np.random.default_rng(0).integers(1, 10**9, 100) * 2
    oracle = Knapsack(weights, int(weights.sum() // 4 * 2 + 1), time_limit=0.3)
    start = time.monotonic()
    result = oracle.solve_batch(-torch.from_numpy(weights).double())
    assert time.monotonic() - start < 60  # the dynamic program would take hours
    assert result.status == Status.FEASIBLE
    assert weights @ result.solutions.numpy() <= oracle.capacity
    assert -weights.sum() <= result.bound.item() <= result.objective.item() < 0


def test_one_and_none():
    assert Knapsack(np.zeros(0, dtype=int), 1).solve(torch.zeros(2, 0)).shape == (2, 0)
    assert Knapsack([5], 4).solve(torch.tensor([-1.0])).tolist() == [0.0]
    assert Knapsack([4], 4).solve(torch.tensor([-1.0])).tolist() == [1.0]
    assert Knapsack([4], 4).solve(torch.zeros(0, 1)).shape == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        (([1, -2], 3), {}, ValueError, "'weights' must not be negative"),
        (([1, 2], -3), {}, ValueError, "'capacity' must not be negative"),
        (([1, 2], [3]), {}, ValueError, "'capacity' must have shape"),
        (([[1, 2]], 3), {}, ValueError, "'capacity' must have shape"),
        ((1, 3), {}, ValueError, "'weights' must have shape"),
        (([1.0, float("nan")], 3), {}, ValueError, "'weights' must be finite"),
        ((["a", "b"], 3), {}, TypeError, "'weights' must hold numbers"),
        (([1, 2], 3), {"upper": -1}, ValueError, "'upper' must be"),
        (([1, 2], 3), {"upper": [1, 1, 1]}, ValueError, "'upper' must be"),
        (([1, 2], 3), {"method": "fast"}, ValueError, "'method' must be one of"),
        (([[1, 2], [1, 2]], [3, 3]), {"method": "dynamic_program"}, ValueError, "takes one constraint"),
        (([10**9, 10**9], 10**9 + 1), {"method": "dynamic_program"}, ValueError, "up to 4194304"),
    ],
)
def test_bad_arguments(arguments, options, error, match):
    with pytest.raises(error, match=match):
        Knapsack(*arguments, **options)


def test_bad_parameters():
    with pytest.raises(ValueError, match="'weights' must not be negative"):
        Knapsack([1, 2], 3).with_parameters(weights=[-1, 2])
    with pytest.raises(TypeError, match="must hold numbers"):
        Knapsack([1, 2], 3).with_parameters(capacity=np.array("x"))
