"""The same solutions and gradients as PyEPO, where it is installed and where it is right."""

import numpy as np
import pytest
import torch

import difflayers as dl
from tests.tolerances import assert_near

pytestmark = pytest.mark.filterwarnings("ignore")  # PyEPO's and its dependencies'


@pytest.fixture(scope="module")
def grid():
    """PyEPO's model of paths through a grid of 3 x 3, and an oracle around the same model."""
    pytest.importorskip("ortools")
    pytest.importorskip("pyepo")
    model = pytest.importorskip("pyepo.model.ort").shortestPathModel((3, 3))

    def solve(cost):
        model.setObj(cost)
        return np.asarray(model.solve()[0], dtype=float)

    return model, dl.oracles.FromCallable(solve, (model.num_cost,))


def both(ours, theirs, oracle, width):
    """Values and gradients of our rule and of PyEPO's module at the same costs."""
    costs, incoming = torch.rand(4, width) + 0.2, torch.randn(4, width)
    results = []
    for f in (lambda c: ours(oracle, c), theirs):
        leaf = costs.clone().requires_grad_()
        y = f(leaf)
        results.append((y, torch.autograd.grad(y, leaf, incoming)[0]))
    for mine, other in zip(*results, strict=True):
        assert_near(mine, other.to(mine.dtype), order=1)
    assert results[0][1].abs().max() > 0


def test_blackbox(grid):
    from pyepo import func

    model, oracle = grid
    both(dl.Blackbox(5.0), func.blackboxOpt(model, lambd=5.0), oracle, model.num_cost)


@pytest.mark.parametrize("control", [True, False])
@pytest.mark.parametrize("multiplicative", [True, False])
def test_perturbed(grid, monkeypatch, multiplicative, control):
    from pyepo import func

    model, oracle = grid

    def theirs(density, count, like, generator, *, antithetic):  # rows first, samples second, their default seed
        shape = (like.shape[0], count, like.shape[1])
        return torch.randn(shape, generator=torch.Generator().manual_seed(135)).transpose(0, 1)

    monkeypatch.setattr(dl.rules.noise, "draw", theirs)
    ours, other = (
        (dl.rules.PerturbedMultiplicative, func.perturbedOptMul)
        if multiplicative
        else (dl.rules.Perturbed, func.perturbedOpt)
    )
    module = other(model, n_samples=6, sigma=0.5, variance_reduction=control)
    both(ours(0.5, samples=6, control_variate=control), module, oracle, model.num_cost)


def test_regularised(grid):
    from pyepo import func

    model, oracle = grid
    costs = torch.rand(3, model.num_cost)
    ours = dl.rules.FrankWolfe(1.0)(oracle, costs)
    theirs = func.regularizedFrankWolfeOpt(model, lambd=1.0, max_iter=2000)(costs)
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=2e-2)  # theirs stops at 1e-3 of its gap or so
    gap = [(c * y).sum() + (y * y).sum() / 2 for y in (ours, theirs) for c in [costs]]
    assert gap[0] <= gap[1] + 1e-6
