"""Optima by enumerating all solutions of small problems, and the assertions that oracles' tests share."""

import itertools

import numpy as np
import torch

from difflayers.oracles import Status

SCALES = (1e-300, 1e-7, 1.0, 1e13, 1e300)


def integer_points(uppers):
    """(points, n): all integer points between zero and the uppers."""
    return np.array(list(itertools.product(*[range(upper + 1) for upper in uppers])), dtype=float).reshape(
        -1, len(uppers)
    )


def least(points, cost):
    """The least cost over points (points, *shape)."""
    return float((points * cost).reshape(len(points), -1).sum(1).min())


def assert_optimal(oracle, points, costs):
    """Every row is OPTIMAL, one of the points, and as cheap as the cheapest."""
    result = oracle.solve_batch(torch.from_numpy(costs))
    assert (result.status == Status.OPTIMAL).all()
    solutions = result.solutions.numpy()
    for cost, solution, objective, bound in zip(costs, solutions, result.objective, result.bound, strict=True):
        assert (points == solution).reshape(len(points), -1).all(1).any(), solution
        scale = np.abs(cost).max(initial=0.0) or 1.0
        assert abs(objective.item() / scale - least(points, cost / scale)) <= 1e-9
        assert objective == bound


def assert_anytime(oracle, costs):
    """Every row is OPTIMAL or FEASIBLE, feasible, with a bound below; returns the result."""
    result = oracle.solve_batch(torch.from_numpy(costs))
    assert (result.status <= Status.FEASIBLE).all(), result.status
    assert (result.bound <= result.objective + 1e-9 * np.abs(costs).max()).all()
    for solution in result.solutions.numpy():
        assert oracle._is_feasible(solution, {})
    return result
