"""Scores as functions of the residual: against their definitions, their weights, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import difflayers as dl
from difflayers.ransac import MAGSAC, MSAC, RANSAC, GaussianUniform, InlierCount, Learned, Line2D, Scorer
from tests.ransac.scoring_problems import SCORERS
from tests.tolerances import assert_near

ratios = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.9999, 301), torch.linspace(1.0001, 30, 100)]).double()
each_scorer = pytest.mark.parametrize("scorer", SCORERS.values(), ids=SCORERS)


@each_scorer
def test_falls_from_one_to_zero(scorer):
    values = scorer.of_squared(ratios)
    assert values[0] == 1
    assert (values.diff() <= 1e-15).all()
    assert ((values >= 0) & (values <= 1)).all()
    assert scorer.of_squared(torch.tensor([torch.inf, 1e12])).tolist() == [0, 0]


@each_scorer
def test_weight_is_minus_the_slope_over_that_at_zero(scorer):
    x = ratios.clone().requires_grad_()
    (slope,) = torch.autograd.grad(scorer.of_squared(x).sum(), x)
    weight = scorer.weight(ratios)
    assert weight[0] == 1
    if isinstance(scorer, InlierCount):
        assert_near(weight, (ratios < 1).double())
        assert not slope.any()
        return
    assert_near(weight, slope / slope[0])
    # and by differences
    step = 1e-6
    difference = (scorer.of_squared(ratios[1:] + step) - scorer.of_squared(ratios[1:] - step)) / (2 * step)
    assert_near(weight[1:], difference / slope[0], factor=1e4)
    assert_near(Scorer.weight(scorer, ratios), weight)


@pytest.mark.parametrize("scorer", [MAGSAC(), GaussianUniform()], ids=["magsac", "gaussian_uniform"])
def test_gradients_of_the_plain_formula(scorer):
    x = torch.tensor([0.0, 1e-8, 0.1, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(scorer.of_squared(x).sum(), x, create_graph=True)
    assert slope.isfinite().all()
    inside = x.detach()[2:].requires_grad_()
    assert torch.autograd.gradcheck(scorer.of_squared, inside)
    assert torch.autograd.gradgradcheck(scorer.of_squared, inside)


def test_magsac_is_the_marginal_over_scales():
    """rho'(r) = r w(r), where w(r) averages the density of residuals of scale sigma, cut off at k sigma, over all sigma
    up to sigma_max."""
    integrate = pytest.importorskip("scipy.integrate")
    degrees, k, sigma_max = 4, 3.64, 2.0
    cutoff = k * sigma_max

    def weight(r):
        density = lambda sigma: (r / sigma) ** (degrees - 1) * np.exp(-((r / sigma) ** 2) / 2) / sigma  # noqa: E731
        return integrate.quad(density, r / k, sigma_max, epsabs=1e-13, epsrel=1e-12, limit=200)[0]

    loss = lambda r: integrate.quad(lambda u: u * weight(u), 0, r, epsabs=1e-12, limit=200)[0]  # noqa: E731
    total = loss(cutoff)
    for share in (0.05, 0.2, 0.4, 0.6, 0.8, 0.95):
        expected = 1 - loss(share * cutoff) / total
        found = MAGSAC().of_squared(torch.tensor(share**2, dtype=torch.float64)).item()
        assert abs(found - expected) < 1e-8


def test_gaussian_uniform_is_magsac_to_four_thousandths():
    x = torch.linspace(0, 1, 2001, dtype=torch.float64)
    difference = (GaussianUniform().of_squared(x**2) - MAGSAC().of_squared(x**2)).abs().max().item()
    assert difference <= 0.004
    assert (MSAC().of_squared(x**2) - MAGSAC().of_squared(x**2)).abs().max() > 0.1


def test_inlier_probability_is_the_posterior_of_the_mixture():
    stats = pytest.importorskip("scipy.stats")
    sigma, share, width, threshold = 0.4, 0.7, 20.0, 1.5
    uniform = (1 - share) / width / (share * stats.norm(0, sigma * threshold).pdf(0))
    r = np.linspace(0, 4, 50)
    expected = share * stats.norm(0, sigma * threshold).pdf(r)
    expected = expected / (expected + (1 - share) / width)
    found = GaussianUniform(sigma, uniform).inlier_probability(torch.tensor((r / threshold) ** 2))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def line_problem(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2, 40, 2, generator=generator, dtype=dtype)
    models = torch.randn(2, 3, 3, generator=generator, dtype=dtype)
    return models, points, torch.tensor([0.5, 1.0], dtype=dtype)


@pytest.mark.parametrize("fused", [True, False])
def test_sigma_learns(fused):
    from difflayers.ransac import scoring

    models, points, threshold = line_problem()
    sigma = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
    scorer = GaussianUniform(sigma)
    if not fused:
        scorer.kernel = None

    def total(value):
        scorer.sigma.data = torch.tensor(value, dtype=torch.float64)
        return scoring.scores(Line2D(), scorer, models, points, None, threshold).sum()

    (gradient,) = torch.autograd.grad(total(0.4), scorer.sigma)
    difference = (total(0.4 + 1e-6) - total(0.4 - 1e-6)) / 2e-6
    assert abs(gradient - difference).item() < 1e-6 * abs(difference.item())
    layer = RANSAC(Line2D(), threshold=0.1, scorer=GaussianUniform(nn.Parameter(torch.tensor(0.3))))
    assert [name for name, _ in layer.named_parameters()] == ["scorer.sigma"]
    assert "sigma=0.3" in repr(layer.scorer)


class Steps(nn.Module):
    def forward(self, ratio):
        return (1 - ratio).clamp(min=0).sum(-1)


def test_a_network_that_computes_msac_scores_as_msac():
    from difflayers.ransac import scoring

    models, points, threshold = line_problem()
    mask = torch.rand(2, 40) > 0.3
    found = scoring.scores(Line2D(), Learned(Steps()), models, points, mask, threshold)
    assert_near(found, scoring.scores(Line2D(), MSAC(), models, points, mask, threshold))
    assert_near(Learned(Steps()).weight(ratios), MSAC().weight(ratios))


def test_what_scorers_refuse():
    with pytest.raises(ValueError, match=r"argument 'sigma' must be a finite number in \(0, inf\), got 0"):
        GaussianUniform(0.0)
    with pytest.raises(ValueError, match=r"argument 'sigma' must be a number or a scalar tensor, got shape \(2,\)"):
        GaussianUniform(torch.ones(2))
    with pytest.raises(ValueError, match="argument 'sigma' must be positive"):
        GaussianUniform(torch.tensor(-1.0))
    with pytest.raises(ValueError, match=r"argument 'uniform' must be a finite number in \[1e-06, 1e\+06\]"):
        GaussianUniform(uniform=0.0)
    with pytest.raises(TypeError, match=r"argument 'module' must be a torch.nn.Module, got function"):
        Learned(lambda ratio: ratio)
    with pytest.raises(ValueError, match="argument 'limit'"):
        Learned(nn.Identity(), limit=1)
    with pytest.raises(ValueError, match=r"must map \(3, 4\) to scores of shape \(3,\), got \(3, 4\)"):
        Learned(nn.Identity()).total(torch.rand(3, 4), None)
    with pytest.raises(dl.UnsupportedOperationError, match="use total"):
        Learned(nn.Identity()).of_squared(torch.rand(3))


@pytest.mark.parametrize("number", [1e-6, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_share_of_outliers(number, dtype):
    from difflayers.ransac import scoring

    models, points, threshold = line_problem(dtype)
    scorer = GaussianUniform(0.3, number)
    found = scoring.scores(Line2D(), scorer, models, points, None, threshold)
    scorer.kernel = None
    expected = scoring.scores(Line2D(), scorer, models.double(), points.double(), None, threshold.double())
    assert_near(found, expected.to(dtype), factor=2)
    assert math.isclose(scorer.of_squared(torch.zeros(1)).item(), 1, rel_tol=1e-6)
