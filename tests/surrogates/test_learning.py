"""Every loss teaches a linear model to plan shorter paths; SPO+ beats least squares where the model is wrong."""

import math

import pytest
import torch

from difflayers import surrogates

from .polytopes import enumerated, flow_constraints, minimiser, paths

pytest.importorskip("scipy")

SIDE, FEATURES, TRAINING = 4, 5, 120
VERTICES = paths(SIDE, SIDE)
ORACLE = enumerated(VERTICES)
FLOW = dict(zip(("A_eq", "b_eq"), flow_constraints(SIDE, SIDE), strict=True))


def data(degree, noise, seed):
    """Features, costs, solutions: the polynomial generator of Elmachtoub and Grigas."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(0, 2, (FEATURES, VERTICES.shape[1]), generator=generator).double()
    features = torch.randn(TRAINING + 400, FEATURES, generator=generator, dtype=torch.float64)
    costs = ((features @ weight / math.sqrt(FEATURES) + 3) ** degree + 1) / 3.5**degree
    costs *= 1 + noise * (2 * torch.rand(costs.shape, generator=generator, dtype=torch.float64) - 1)
    return features, costs, minimiser(VERTICES, costs)


def trained(loss, features, costs, best, epochs):
    torch.manual_seed(0)
    model = torch.nn.Linear(FEATURES, costs.shape[1], dtype=torch.float64)
    torch.nn.init.ones_(model.bias)
    optimiser = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(epochs):
        for rows in torch.randperm(TRAINING).split(30):
            optimiser.zero_grad()
            loss(model(features[rows]), costs[rows], best[rows]).backward()
            optimiser.step()
    return regret(model, features, costs)


@torch.no_grad()
def regret(model, features, costs):
    unseen = slice(TRAINING, None)
    return surrogates.normalized_regret(model(features[unseen]), costs[unseen], ORACLE).item()


def losses():
    pool = {"pool": VERTICES[:5]}
    perturbed = surrogates.FenchelYoung(ORACLE, samples=4, sigma=0.5)
    multiplied = surrogates.FenchelYoung(ORACLE, samples=4, sigma=0.5, perturbation="multiplicative")
    machine, margin = (
        surrogates.StructuredSVM(ORACLE, margin=0.1),
        surrogates.MaximumOptimalityMargin(**FLOW, margin=0.1),
    )
    spo, central = surrogates.SPOPlus(ORACLE), surrogates.PerturbationGradient(ORACLE, width=1.0, side="central")
    nce, hardest = surrogates.NCE(ORACLE, **pool), surrogates.ContrastiveMAP(ORACLE, **pool, compare="spo")
    point, pair = surrogates.PointwiseRanking(ORACLE, **pool), surrogates.PairwiseRanking(ORACLE, **pool, margin=0.1)
    wide, cone = surrogates.ListwiseRanking(ORACLE, **pool), surrogates.CaVE(**FLOW, bounds=(0, 1))
    return {
        "spo": spo,
        "perturbation gradient": lambda p, c, w: central(p, c),
        "pointwise": lambda p, c, w: point(p, c),
        "pairwise": lambda p, c, w: pair(p, c),
        "listwise": lambda p, c, w: wide(p, c),
        "contrastive map": lambda p, c, w: hardest(p, w, c),
        "nce": lambda p, c, w: nce(p, w),
        "fenchel-young": lambda p, c, w: perturbed(p, w),
        "fenchel-young multiplicative": lambda p, c, w: multiplied(p, w),
        "structured svm": lambda p, c, w: machine(p, w),
        "optimality margin": lambda p, c, w: margin(p, w),
        "cave": lambda p, c, w: cone(p, w),
    }


@pytest.mark.parametrize("name", losses())
def test_learns(name):
    features, costs, best = data(2, 0.0, seed=0)
    torch.manual_seed(0)
    untrained = torch.nn.Linear(FEATURES, costs.shape[1], dtype=torch.float64)
    torch.nn.init.ones_(untrained.bias)
    before = regret(untrained, features, costs)
    assert before > 0.1
    assert trained(losses()[name], features, costs, best, epochs=10) < 0.35 * before


def test_spo_plus_beats_least_squares_where_the_model_is_wrong():
    regrets = {}
    for name, loss in (("spo", surrogates.SPOPlus(ORACLE)), ("squares", lambda p, c, w: (p - c).square().mean())):
        regrets[name] = sum(trained(loss, *data(6, 0.0, seed), epochs=25) for seed in range(3))
    assert regrets["spo"] < 0.7 * regrets["squares"], regrets


def test_least_squares_is_right_where_the_model_is():
    """The setting is not rigged: with a linear truth and no noise, two stages are enough."""
    assert trained(lambda p, c, w: (p - c).square().mean(), *data(1, 0.0, 0), epochs=80) < 1e-3
