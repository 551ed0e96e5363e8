"""Blackbox, Identity, LPGD: their gradients against enumeration and against autograd of the projection."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

import difflayers as dl
from tests.rules.polytopes import POLYTOPES, Recorded, cube, enumerated, solve, subsets
from tests.tolerances import assert_identical, assert_near

each_polytope = pytest.mark.parametrize("name", POLYTOPES)
each_side = pytest.mark.parametrize("side", ["improve", "worsen", "both"])


def gradient_of(rule, oracle, costs, incoming, **settings):
    leaf = costs.clone().requires_grad_()
    y = rule(oracle, leaf, **settings)
    return y, torch.autograd.grad(y, leaf, incoming)[0]


def problem(name, rows=20, seed=0):
    oracle, vertices = enumerated(POLYTOPES[name])
    generator = torch.Generator().manual_seed(seed)
    costs = torch.randn(rows, vertices.shape[1], dtype=torch.float64, generator=generator)
    incoming = torch.randn(rows, vertices.shape[1], dtype=torch.float64, generator=generator)
    return oracle, vertices, costs, incoming


@each_side
@each_polytope
def test_blackbox(name, side):
    oracle, vertices, costs, incoming = problem(name)
    y, gradient = gradient_of(dl.Blackbox(1.5, side=side), oracle, costs, incoming)
    here, better, worse = (solve(vertices, costs + step * incoming) for step in (0.0, 1.5, -1.5))
    assert_identical(y, here)
    wanted = {"improve": (better - here) / 1.5, "worsen": (here - worse) / 1.5, "both": (better - worse) / 3.0}[side]
    assert_near(gradient, wanted, order=1)
    assert name == "point" or gradient.abs().max() > 0


@each_side
def test_moved_costs_are_projected_onto_the_domain(side):
    oracle = Recorded(subsets(4, 2), cost_domain="nonnegative")
    costs, incoming = torch.rand(9, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    for rule in (dl.Blackbox(5.0, side=side), dl.rules.LPGD(5.0, side=side)):
        oracle.calls.clear()
        _, gradient = gradient_of(rule, oracle, costs, incoming)
        assert len(oracle.calls) == 2  # both sides are one call
        assert all((call >= 0).all() for call in oracle.calls)
        vertices = torch.as_tensor(subsets(4, 2))
        here, better, worse = (solve(vertices, (costs + s * 5.0 * incoming).clamp(min=0)) for s in (0, 1, -1))
        wanted = {"improve": better - here, "worsen": here - worse, "both": (better - worse) / 2}[side] / 5.0
        assert_near(gradient, wanted, order=1)


@pytest.mark.parametrize("projection", [None, "normalize", "center", "both"])
@pytest.mark.parametrize("shape", [(7,), (2, 3), ()], ids=str)
def test_identity(projection, shape):
    def project(c):
        if projection in ("center", "both"):
            c = c - c.mean()
        return c / c.square().sum().sqrt() if projection in ("normalize", "both") else c

    oracle = dl.oracles.FromCallable(lambda c: (c < 0).astype(float), shape)
    costs, incoming = torch.randn(5, *shape, dtype=torch.float64), torch.randn(5, *shape, dtype=torch.float64)
    y, gradient = gradient_of(dl.rules.Identity(projection), oracle, costs, incoming)
    assert_identical(y, (costs < 0).double())
    if shape == () and projection in ("center", "both"):
        assert_identical(gradient, 0 * incoming)
        return
    for row in range(5):
        jacobian = torch.autograd.functional.jacobian(project, costs[row])
        wanted = -torch.tensordot(incoming[row], jacobian, dims=len(shape)) if shape else -incoming[row] * jacobian
        assert_near(gradient[row], wanted, order=1)
        if projection in ("normalize", "both"):  # nothing flows into the scale
            assert abs((gradient[row] * costs[row]).sum()) < 1e-12
        if projection in ("center", "both"):
            assert abs(gradient[row].sum()) < 1e-12


@pytest.mark.parametrize("projection", ["normalize", "both"])
def test_identity_where_the_norm_is_zero_or_underflows(projection):
    oracle, _ = enumerated(np.eye(3))
    incoming = torch.tensor([1.0, 2.0, 4.0])
    _, gradient = gradient_of(dl.rules.Identity(projection), oracle, torch.zeros(3), incoming)
    assert_near(gradient, -(incoming - incoming.mean() * (projection == "both")))
    equal = torch.full((3,), 0.1, dtype=torch.float64)
    if projection == "both":
        _, gradient = gradient_of(dl.rules.Identity(projection), oracle, equal, incoming.double())
        assert_near(gradient, incoming.double().mean() - incoming.double())
    tiny = torch.tensor([1.0, 0.0, -1.0]) * 1e-30  # whose squares are 0 in float32
    _, gradient = gradient_of(dl.rules.Identity(projection), oracle, tiny, incoming)
    _, wanted = gradient_of(dl.rules.Identity(projection), oracle, tiny.double(), incoming.double())
    assert_near(gradient / 1e30, (wanted / 1e30).float(), order=1)


def proximal(vertices, target):
    """The nearest point of the hull, through non-negative least squares with a heavy row for the sum of weights."""
    heavy = 1e5
    matrix = np.vstack([vertices.numpy().T, heavy * np.ones((1, len(vertices)))])
    weights = nnls(matrix, np.append(target.numpy(), heavy))[0]
    return torch.as_tensor(weights / weights.sum() @ vertices.numpy())


@each_side
@each_polytope
def test_lpgd(name, side):
    oracle, vertices, costs, incoming = problem(name, rows=8)
    tau, rho = 1.5, 0.8
    y, gradient = gradient_of(dl.rules.LPGD(tau, rho=rho, side=side), oracle, costs, incoming)
    for row in range(8):
        better, worse = (
            proximal(vertices, y[row].detach() - (costs[row] + s * tau * incoming[row]) / rho) for s in (1, -1)
        )
        wanted = {
            "improve": (better - y[row]) / tau,
            "worsen": (y[row] - worse) / tau,
            "both": (better - worse) / (2 * tau),
        }[side]
        torch.testing.assert_close(gradient[row], wanted.detach(), rtol=0, atol=1e-6)


@each_side
def test_lpgd_without_penalty_is_blackbox(side):
    oracle, _, costs, incoming = problem("subsets")
    assert_identical(
        gradient_of(dl.rules.LPGD(2.0, side=side), oracle, costs, incoming)[1],
        gradient_of(dl.Blackbox(2.0, side=side), oracle, costs, incoming)[1],
    )


def test_lpgd_penalty_needs_negative_costs():
    oracle, _ = enumerated(cube(2), cost_domain="nonnegative")
    with pytest.raises(
        ValueError, match=r"LPGD: argument 'rho' must be 0 for an oracle of nonnegative costs.*got 0\.5"
    ):
        dl.rules.LPGD(1.0, rho=0.5)(oracle, torch.ones(2))
