"""FrankWolfe against certificates of optimality, closed forms and finite differences."""

import numpy as np
import pytest
import torch

import difflayers as dl
from difflayers.rules.nearest_point import NearestPoints
from tests.rules.polytopes import POLYTOPES, enumerated, permutations, subsets
from tests.tolerances import assert_near

each_polytope = pytest.mark.parametrize("name", POLYTOPES)
each_strength = pytest.mark.parametrize("lam", [0.01, 0.3, 1.0, 30.0])


def costs_for(vertices, rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vertices.shape[1], dtype=torch.float64, generator=generator)


@each_strength
@each_polytope
def test_the_point_is_optimal(name, lam):
    oracle, vertices = enumerated(POLYTOPES[name])
    costs = costs_for(vertices, 50)
    found = NearestPoints(oracle, costs, lam, 1e-10, 1000)
    # a combination of vertices ...
    for row, hull in found.hulls.items():
        assert (hull.weights >= 0).all()
        assert abs(hull.weights.sum() - 1) < 1e-12
        np.testing.assert_allclose(hull.weights @ hull.vertices, found.points[row], atol=1e-12)
    # ... that no vertex improves on: lam / 2 |x - x*|^2 is at most this gap
    gradient = costs + lam * found.points
    gap = (gradient * found.points).sum(1) - (gradient @ vertices.T).min(1).values
    assert gap.max() <= 1e-9 * (costs.abs().max() + lam)


@each_strength
def test_closed_forms(lam):
    oracle, _ = enumerated(POLYTOPES["cube"])
    costs = torch.randn(20, 5, dtype=torch.float64)
    assert_near(dl.rules.FrankWolfe(lam)(oracle, costs), (-costs / lam).clamp(0, 1), factor=1e3)
    oracle, _ = enumerated(np.eye(7))  # the simplex: sparsemax
    costs = torch.randn(20, 7, dtype=torch.float64)
    assert_near(dl.rules.FrankWolfe(lam)(oracle, costs), dl.sparsemax(-costs / lam), factor=1e3)


@each_polytope
def test_gradient(name):
    oracle, vertices = enumerated(POLYTOPES[name])
    costs = costs_for(vertices, 6, seed=1).requires_grad_()
    for lam in (0.3, 2.0):
        rule = dl.rules.FrankWolfe(lam)
        assert torch.autograd.gradcheck(lambda c, rule=rule: rule(oracle, c), costs, eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("vertices", [subsets(4, 2), subsets(6, 3), np.eye(5), permutations(3)], ids=len)
def test_gradient_at_symmetric_costs(vertices):
    # the point is the centre, found as a mixture of fewer vertices than its face has: the gradient must not show it
    oracle, _ = enumerated(vertices)
    costs = torch.zeros(1, vertices.shape[1], dtype=torch.float64, requires_grad=True)
    rule = dl.rules.FrankWolfe(1.0)
    assert torch.autograd.gradcheck(lambda c: rule(oracle, c), costs, eps=1e-5, atol=1e-6)


def test_gradient_flows_only_within_the_face():
    oracle, vertices = enumerated(subsets(6, 2))
    costs = costs_for(vertices, 30).requires_grad_()
    point = dl.rules.FrankWolfe(0.5)(oracle, costs)
    (gradient,) = torch.autograd.grad(point, costs, torch.randn_like(point))
    settled = (point < 1e-9) | (point > 1 - 1e-9)
    assert settled.any()
    assert not settled.all()
    assert gradient[settled].abs().max() < 1e-9


def test_few_solves_and_none_for_rows_that_are_done():
    grid = dl.oracles.TopK(40, 10)
    costs = torch.randn(16, 40, dtype=torch.float64)
    found = NearestPoints(grid, costs, 0.5, 1e-10, 1000)
    most = max(len(hull.weights) for hull in found.hulls.values())
    assert found.solves <= 16 * 4 * (most + 2)
    # one row whose solution is a vertex, among others: it is solved twice
    easy = torch.cat([costs[:1] * 1e6, costs[1:]])
    alone = NearestPoints(grid, easy[:1], 0.5, 1e-10, 1000)
    assert alone.solves == 2
    rest = NearestPoints(grid, easy[1:], 0.5, 1e-10, 1000)
    assert NearestPoints(grid, easy, 0.5, 1e-10, 1000).solves == rest.solves + 2


def test_max_iterations_returns_a_feasible_point():
    oracle, _ = enumerated(subsets(8, 4))
    point = dl.rules.FrankWolfe(10.0, max_iterations=1)(oracle, torch.zeros(8, dtype=torch.float64))
    assert_near(point.sum(), torch.tensor(4.0, dtype=torch.float64))
    assert (point >= 0).all()


def test_a_failure_in_a_later_step_names_the_row_of_the_batch():
    calls = []

    def fails_in_the_end(cost):
        calls.append(cost)
        return None if len(calls) == 5 else np.eye(2)[cost.argmin()]

    oracle = dl.oracles.FromCallable(fails_in_the_end, (2,))
    costs = torch.tensor([[0.0, 9.0], [0.0, 9.0], [0.1, 0.0]])  # the first two are vertices, found after two solves
    # calls 1-3 are the first step, 4-6 the second; the fifth is row 1
    with pytest.raises(dl.InfeasibleError, match=r"of the whole batch, rows \[1\]") as caught:
        dl.rules.FrankWolfe(1.0)(oracle, costs)
    assert caught.value.rows == [1]
    calls.clear()
    oracle.on_failure = "nan"
    point = dl.rules.FrankWolfe(1.0)(oracle, costs)
    assert point.isnan().any(1).tolist() == [False, True, False]
