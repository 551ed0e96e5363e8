"""Maximum optimality margin against enumerated bases and an independent linear program."""

import itertools
import math

import numpy as np
import pytest
import torch

from difflayers import surrogates

from ..tolerances import assert_near
from .polytopes import (
    assert_convex,
    assignments,
    finite_difference,
    flow_constraints,
    gradient,
    minimiser,
    paths,
    values,
)

pytest.importorskip("scipy")


def every_basis(A, b):
    """(basis, x) of every feasible basis of A x = b, x >= 0, by enumeration."""
    m, n = A.shape
    found = []
    for basis in map(list, itertools.combinations(range(n), m)):
        if abs(np.linalg.det(A[:, basis])) > 1e-9:
            x = np.zeros(n)
            x[basis] = np.linalg.solve(A[:, basis], b)
            if x.min() > -1e-9:
                found.append((basis, x))
    return found


def reduced_costs(A, basis, cost):
    return cost - np.linalg.inv(A[:, basis]).T.dot(cost[basis]) @ A


def random_program(seed, m=3, n=7):
    """A bounded feasible program in standard form that is almost surely not degenerate."""
    generator = np.random.default_rng(seed)
    A = np.vstack([np.ones(n), generator.normal(size=(m - 1, n))])  # the first row bounds it
    return A, A @ generator.uniform(0.5, 1.5, n)


@pytest.mark.parametrize("seed", range(4))
def test_against_enumerated_bases(seed):
    A, b = random_program(seed)
    bases = every_basis(A, b)
    assert len(bases) > 3
    costs = np.random.default_rng(seed + 100).normal(size=(len(bases), 7))
    expected, slopes = [], []
    for (basis, _), cost in zip(bases, costs, strict=True):
        r = reduced_costs(A, basis, cost)
        outside = [j for j in range(7) if j not in basis]
        short = {j: 0.7 - r[j] for j in outside if r[j] < 0.7}
        expected.append(sum(short.values()))
        slope = np.zeros(7)
        for j in short:  # dr_j = dc_j - dc_B' A_B^-1 A_j
            slope[j] -= 1
            slope[basis] += np.linalg.inv(A[:, basis]) @ A[:, j]
        slopes.append(slope)
    loss = surrogates.MaximumOptimalityMargin(A_eq=A, b_eq=b, margin=0.7, reduction="none")
    predicted = torch.from_numpy(costs)
    observed = torch.from_numpy(np.array([x for _, x in bases]))
    factor = 1e3  # the condition of a random basis
    assert_near(loss(predicted, observed), torch.tensor(expected, dtype=torch.float64), factor=factor)
    slope = gradient(lambda p: loss(p, observed), predicted)
    assert_near(slope, torch.from_numpy(np.array(slopes)), factor=factor)
    finite = finite_difference(lambda p: loss(p, observed), predicted, 1e-7)
    assert_near(finite, slope, factor=1e6)  # piecewise linear: rounding, times that condition
    assert_convex(
        lambda p: loss(p, observed), lambda s: torch.from_numpy(np.random.default_rng(s).normal(size=costs.shape))
    )


@pytest.mark.parametrize("seed", range(4))
def test_zero_means_optimal_by_the_margin(seed):
    """The loss of a vertex is zero iff it stays optimal when the others' costs fall by less than the margin."""
    A, b = random_program(seed)
    bases = every_basis(A, b)
    vertices = torch.from_numpy(np.array([x for _, x in bases]))
    costs = torch.from_numpy(np.random.default_rng(seed + 7).normal(size=(40, 7)))
    best = values(vertices, costs).argmin(1)
    loss = surrogates.MaximumOptimalityMargin(A_eq=A, b_eq=b, margin=1e-9, reduction="none")
    assert (loss(costs, vertices[best]) < 1e-8).all()
    other = (best + 1) % len(vertices)
    assert (loss(costs, vertices[other]) > 1e-6).all()
    smallest = np.array(
        [
            np.delete(reduced_costs(A, bases[i][0], c), bases[i][0]).min()
            for i, c in zip(best, costs.numpy(), strict=True)
        ]
    )
    wide = surrogates.MaximumOptimalityMargin(A_eq=A, b_eq=b, margin=0.3, reduction="none")
    assert ((wide(costs, vertices[best]).numpy() < 1e-9) == (smallest >= 0.3)).all()
    assert (smallest >= 0.3).any()
    assert (smallest < 0.3).any()


def test_slacks_bounds_and_shifts_make_the_standard_form():
    # max-type program in three variables: x + y + z <= 4, x - y <= 1, 1 <= x <= 2, 0 <= y, -1 <= z <= 3
    A_ub, b_ub = np.array([[1.0, 1, 1], [1, -1, 0]]), np.array([4.0, 1])
    bounds = [(1, 2), (0, None), (-1, 3)]
    A = np.array([[1.0, 1, 1, 1, 0, 0, 0], [1, -1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0, 1]])
    b = np.array([4 - 1 + 1, 1 - 1, 1, 4.0])  # after x = 1 + x', z = -1 + z'
    bases = [(basis, x) for basis, x in every_basis(A, b) if (x > 1e-9).sum() == 4]
    assert len(bases) >= 4
    costs = np.random.default_rng(0).normal(size=(len(bases), 3))
    expected = []
    for (basis, _), cost in zip(bases, costs, strict=True):
        r = np.delete(reduced_costs(A, basis, np.pad(cost, (0, 4))), basis)
        expected.append(np.maximum(1 - r, 0).sum())
    loss = surrogates.MaximumOptimalityMargin(A_ub=A_ub, b_ub=b_ub, bounds=bounds, reduction="none")
    observed = torch.from_numpy(np.array([x[:3] for _, x in bases]) + np.array([1, 0, -1]))
    assert_near(loss(torch.from_numpy(costs), observed), torch.tensor(expected), factor=10)


DEGENERATE = {
    "paths": (paths(3, 3), dict(zip(("A_eq", "b_eq"), flow_constraints(3, 3), strict=True))),
    "assignments": (
        assignments(3),
        {
            "A_eq": np.array([np.eye(3)[i].repeat(3) for i in range(3)] + [np.tile(np.eye(3)[i], 3) for i in range(3)]),
            "b_eq": np.ones(6),
            "cost_shape": (3, 3),
        },
    ),
}


def all_bases_hinge(A, support, cost, margin):
    """The smallest hinge over multipliers, from a dual linear program solved by enumeration's big brother, cvxpy."""
    cvxpy = pytest.importorskip("cvxpy")
    y = cvxpy.Variable(len(A))
    r = cost - A.T @ y
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(cvxpy.pos(margin - r[~support]))), [r[support] == 0])
    return problem.solve(solver="CLARABEL")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # of cvxpy
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_solutions_take_the_best_multipliers(name):
    vertices, constraints = DEGENERATE[name]
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(6, *vertices.shape[1:], generator=generator, dtype=torch.float64)
    observed = vertices[[0, 1, 2, 3, 4, 5]]
    loss = surrogates.MaximumOptimalityMargin(**constraints, margin=0.5, reduction="none")
    rows = loss(predicted, observed)
    flat, support = predicted.flatten(1).numpy(), observed.flatten(1).numpy() > 0
    expected = [all_bases_hinge(np.asarray(constraints["A_eq"]), s, c, 0.5) for s, c in zip(support, flat, strict=True)]
    assert_near(rows, torch.tensor(np.array(expected)), factor=1e5)  # an interior-point method
    slope = gradient(lambda p: loss(p, observed), predicted)
    finite = finite_difference(lambda p: loss(p, observed), predicted, 1e-5)
    assert_near(finite, slope, factor=1e4)  # piecewise linear: rounding, of a solver
    assert_convex(
        lambda p: loss(p, observed),
        lambda s: torch.randn(predicted.shape, generator=torch.Generator().manual_seed(s), dtype=torch.float64),
        trials=4,
    )
    # the multipliers of a completed basis are among those that the program chooses from
    complete = surrogates.MaximumOptimalityMargin(**constraints, margin=0.5, degenerate="complete", reduction="none")
    exempt = torch.from_numpy(np.linalg.matrix_rank(constraints["A_eq"]) - support.sum(1))
    assert (complete(predicted, observed) + 0.5 * exempt >= rows - 1e-9).all()


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_optima_have_zero_loss_for_a_small_margin_and_others_do_not(name):
    vertices, constraints = DEGENERATE[name]
    costs = torch.rand(20, *vertices.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    best = minimiser(vertices, costs)
    loss = surrogates.MaximumOptimalityMargin(**constraints, margin=1e-9, reduction="none")
    assert (loss(costs, best) < 1e-7).all()
    second = vertices[values(vertices, costs).argsort(1)[:, 1]]
    assert (loss(costs, second) > 1e-5).all()
    # with the optimal bases of the true costs, no program is solved, and optima have zero loss as well
    bases = loss.bases(costs, best)
    assert bases.shape == (20, {"paths": 8, "assignments": 5}[name])
    assert (loss(costs, best, bases) < 1e-7).all()
    A = np.asarray(constraints["A_eq"])
    for basis, cost in zip(bases.numpy(), costs.flatten(1).numpy(), strict=True):
        assert len(set(basis)) == len(basis)
        y = np.linalg.lstsq(A[:, basis].T, cost[basis], rcond=None)[0]
        assert (cost - y @ A).min() > -1e-8  # an optimal basis
    wide = surrogates.MaximumOptimalityMargin(**constraints, margin=0.3, reduction="none")
    expected = []
    for basis, cost in zip(bases.numpy(), costs.flip(0).flatten(1).numpy(), strict=True):
        y = np.linalg.lstsq(A[:, basis].T, cost[basis], rcond=None)[0]
        expected.append(np.maximum(0.3 - np.delete(cost - y @ A, basis), 0).sum())
    assert_near(wide(costs.flip(0), best, bases), torch.tensor(expected), factor=10)


def test_learns_costs_from_solutions_alone():
    vertices, constraints = DEGENERATE["paths"]
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(4, 12, generator=generator, dtype=torch.float64) + 0.2
    features = torch.rand(80, 4, generator=generator, dtype=torch.float64)
    best = minimiser(vertices, features @ weight)
    loss = surrogates.MaximumOptimalityMargin(**constraints, margin=0.1)
    learned = torch.full((4, 12), 0.5, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([learned], 0.05)

    def share():
        return (minimiser(vertices, features[30:] @ learned.detach()) == best[30:]).all(1).double().mean()

    before = share()
    for _ in range(25):
        optimiser.zero_grad()
        loss(features[:30] @ learned, best[:30]).backward()
        optimiser.step()
    assert share() > max(0.7, before + 0.2)


def test_shapes_and_dtypes():
    vertices, constraints = DEGENERATE["assignments"]
    loss = surrogates.MaximumOptimalityMargin(**constraints, reduction="none")
    predicted, observed = torch.randn(2, 3, 3, 3), vertices.reshape(2, 3, 3, 3)
    rows = loss(predicted, observed)
    assert rows.shape == (2, 3)
    assert rows.dtype == torch.float32
    assert_near(loss(predicted[0, 1], observed[0, 1]), rows[0, 1], factor=10)
    assert_near(surrogates.MaximumOptimalityMargin(**constraints)(predicted, observed), rows.mean())
    assert loss(predicted.bfloat16(), observed).dtype == torch.bfloat16
    assert loss(predicted[:0], observed[:0]).shape == (0, 3)


def test_bad_input_is_refused():
    make = surrogates.MaximumOptimalityMargin
    simplex = {"A_eq": np.ones((1, 3)), "b_eq": np.ones(1)}
    for settings, error, message in (
        ({}, ValueError, "pass constraints, A_ub or A_eq, or cost_shape"),
        ({"A_eq": np.ones((1, 3))}, ValueError, "pass both A_eq and b_eq"),
        ({"A_eq": np.ones((1, 3)), "b_eq": np.ones(2)}, ValueError, r"'A_eq' must have shape \(2, 3\)"),
        ({**simplex, "A_ub": [[1, 2, 3]], "b_ub": [1, 2]}, ValueError, r"'A_ub' must have shape \(2, 3\)"),
        ({"A_eq": [[math.nan]], "b_eq": [1]}, ValueError, "'A_eq' must be a finite array"),
        ({"A_eq": "x", "b_eq": [1]}, TypeError, "'A_eq' must be an array of numbers, got str"),
        ({**simplex, "bounds": (None, 1)}, ValueError, "must have a finite lower bound for every variable"),
        ({**simplex, "bounds": (1, 0)}, ValueError, "lower <= upper"),
        ({**simplex, "bounds": [(0, 1)] * 2}, ValueError, "or 3 of them"),
        ({**simplex, "margin": 0}, ValueError, "'margin' must be"),
        ({**simplex, "degenerate": "none"}, ValueError, "'best', 'complete'"),
    ):
        with pytest.raises(error, match=message):
            make(**settings)
    loss, good, first = make(**simplex), torch.rand(2, 3), torch.eye(3)[:2]
    for predicted, observed, error, message in (
        (good, first + 1, ValueError, r"must satisfy the constraints, got rows that do not: \[0, 1\]"),
        (good, torch.full((2, 3), 1 / 3), ValueError, "must be vertices, got one that is not in row 0"),
        (good * math.nan, first, ValueError, "'predicted_costs' must be finite"),
        (good.long(), first, TypeError, "floating-point"),
        (good, first[:1], ValueError, "must have shape"),
    ):
        with pytest.raises(error, match=message):
            loss(predicted, observed)
    with pytest.raises(ValueError, match=r"'bases' must be int64 of shape \(2, 1\)"):
        loss(good, first, torch.zeros(2, 2, dtype=torch.int64))
