"""CaVE: projections against closed forms and cvxpy, the cone against enumeration."""

import math

import numpy as np
import pytest
import torch

from difflayers import surrogates

from ..tolerances import assert_near
from .polytopes import finite_difference, flow_constraints, gradient, minimiser, paths, subsets, values

pytest.importorskip("scipy")

GRID = dict(zip(("A_eq", "b_eq"), flow_constraints(3, 3), strict=True))


def costs_of(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_box_is_the_projection_to_an_orthant():
    predicted = costs_of(30, 5)
    best = torch.randint(0, 2, (30, 5), generator=torch.Generator().manual_seed(1)).double()
    outward = 2 * best - 1  # the normal of the bound that binds
    near = outward * (outward * -predicted).clamp(min=0)
    cosine = near.norm(dim=1) / predicted.norm(dim=1)
    loss = surrogates.CaVE(bounds=(0, 1), cost_shape=(5,), projection="exact", reduction="none")
    assert_near(loss(predicted, best), 1 - cosine)
    for scale in (1e-20, 1e20):
        assert_near(loss(scale * predicted, best), 1 - cosine)
    inner = surrogates.CaVE(bounds=(0, 1), cost_shape=(5,), projection="inner", inner_ratio=0.3, reduction="none")
    target = 0.7 * near / near.norm(dim=1, keepdim=True) + 0.3 * outward / 5
    assert_near(inner(predicted, best), 1 - torch.cosine_similarity(-predicted, target, dim=1))
    average = surrogates.CaVE(bounds=(0, 1), cost_shape=(5,), projection="average", inner_ratio=0.3, reduction="none")
    target = -0.7 * predicted / predicted.norm(dim=1, keepdim=True) + 0.3 * outward / 5
    assert_near(average(predicted, best), 1 - torch.cosine_similarity(-predicted, target, dim=1))
    hybrid = surrogates.CaVE(bounds=(0, 1), cost_shape=(5,), solve_ratio=0.0, inner_ratio=0.3, reduction="none")
    assert_near(hybrid(predicted, best), average(predicted, best))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # of cvxpy
def test_projection_against_cvxpy():
    cvxpy = pytest.importorskip("cvxpy")
    A_ub, b_ub = np.array([[1.0, 2, 0, 1], [0, 1, 1, 1]]), np.array([2.0, 1])
    A_eq, b_eq = np.array([[1.0, -1, 1, 1], [2, -2, 2, 2]]), np.array([1.0, 2])  # one row twice
    best = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [2, 1, 0, 0]])
    best[2] = [0, 0, 0, 1]
    predicted = costs_of(3, 4)
    loss = surrogates.CaVE(
        A_ub=A_ub, b_ub=b_ub, A_eq=A_eq, b_eq=b_eq, bounds=(0, 1), projection="exact", reduction="none"
    )
    expected = []
    for x, c in zip(best, predicted.numpy(), strict=True):
        normals = [*A_ub[np.isclose(A_ub @ x, b_ub)], *-np.eye(4)[x == 0], *np.eye(4)[x == 1]]
        weights, free = cvxpy.Variable(len(normals), nonneg=True), cvxpy.Variable(2)
        near = np.array(normals).T @ weights + A_eq.T @ free
        cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(near + c))).solve(solver="CLARABEL")
        expected.append(1 - near.value @ -c / np.linalg.norm(near.value) / np.linalg.norm(c))
    assert_near(loss(predicted, torch.from_numpy(best)), torch.tensor(expected), factor=1e6)  # an interior-point method


@pytest.mark.parametrize(
    ("vertices", "constraints"),
    [
        (paths(3, 3), GRID),
        (subsets(5, 2), {"A_eq": np.ones((1, 5)), "b_eq": [2.0], "bounds": (0, 1)}),
    ],
    ids=["paths", "two of five"],
)
def test_zero_iff_the_solution_is_optimal(vertices, constraints):
    costs = costs_of(60, vertices.shape[1])
    loss = surrogates.CaVE(**constraints, projection="exact", reduction="none")
    if "bounds" not in constraints:
        loss = surrogates.CaVE(**constraints, bounds=(0, 1), projection="exact", reduction="none")
    assert (loss(costs, minimiser(vertices, costs)) < 1e-12).all()
    second = vertices[values(vertices, costs).argsort(1)[:, 1]]
    rows = loss(costs, second)
    assert (rows > 1e-9).all()
    assert (rows <= 1).all()
    slope = gradient(lambda p: loss(p, second), costs)
    finite = finite_difference(lambda p: loss(p, second), costs)
    assert_near(finite, slope, factor=1e4)  # of central differences
    # a step against the gradient makes the solution cheaper by comparison
    moved = loss(costs - 0.01 * slope, second)
    assert (moved < rows).all()


def test_inner_target_pulls_on_from_the_boundary():
    """At a tie, "exact" is content and "inner" is not."""
    simplex = {"A_eq": np.ones((1, 3)), "b_eq": [1.0], "bounds": (0, 1)}
    tie, best = torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64), torch.tensor([1.0, 0.0, 0.0])
    exact = gradient(surrogates_call("exact", simplex, best), tie)
    assert_near(exact, torch.zeros(3, dtype=torch.float64))
    for projection in ("inner", "average"):
        slope = gradient(surrogates_call(projection, simplex, best), tie)
        assert slope[0] - slope[1] > 1e-3


def surrogates_call(projection, constraints, best):
    loss = surrogates.CaVE(**constraints, projection=projection)
    return lambda p: loss(p, best)


def test_degenerate_directions():
    loss = surrogates.CaVE(bounds=(0, 1), cost_shape=(3,), reduction="none", projection="exact")
    best = torch.tensor([1.0, 0.0, 0.0])
    for costs in (torch.zeros(3), torch.tensor([1.0, 0.0, 0.0])):  # nothing, and the opposite of the cone
        assert loss(costs, best).item() == 1
        assert gradient(lambda p: loss(p, best), costs).isfinite().all()
    inside = torch.tensor([0.5, 0.5, 0.5])  # no constraint binds: the cone is {0}
    assert loss(torch.ones(3), inside).item() == 1


def test_shapes_and_dtypes():
    loss = surrogates.CaVE(bounds=(0, 1), cost_shape=(2, 3), reduction="none")
    predicted, best = torch.randn(4, 5, 2, 3), torch.ones(4, 5, 2, 3)
    rows = loss(predicted, best)
    assert rows.shape == (4, 5)
    assert_near(loss(predicted[1, 2], best[1, 2]), rows[1, 2])
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        p = predicted.to(dtype, copy=True).requires_grad_()
        value = surrogates.CaVE(bounds=(0, 1), cost_shape=(2, 3))(p, best)
        assert value.dtype == dtype
        value.backward()
        assert p.grad.isfinite().all()
    assert loss(predicted[:0], best[:0]).shape == (0, 5)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="'projection' must be one of 'exact', 'inner', 'average'"):
        surrogates.CaVE(cost_shape=(3,), projection="none")
    with pytest.raises(ValueError, match="'inner_ratio' must be"):
        surrogates.CaVE(cost_shape=(3,), inner_ratio=1.5)
    loss, good = surrogates.CaVE(bounds=(0, 1), cost_shape=(3,)), torch.rand(2, 3)
    for predicted, best, error, message in (
        (good, 2 + good, ValueError, r"must satisfy the constraints, got rows that do not: \[0, 1\]"),
        (good / 0, good, ValueError, "'predicted_costs' must be finite"),
        (good[:, :2], good, ValueError, "'predicted_costs' must have shape"),
        (good, good * math.nan, ValueError, "'true_solutions' must be finite"),
    ):
        with pytest.raises(error, match=message):
            loss(predicted, best)
