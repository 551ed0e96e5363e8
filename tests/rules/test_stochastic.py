"""Perturbed, IMLE and AdaptiveIMLE against closed forms of their expectations, and against plain restatements."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch.distributions import Normal

import difflayers as dl
from difflayers.rules import noise as noises
from tests.rules.polytopes import POLYTOPES, Recorded, cube, enumerated, solve, subsets
from tests.tolerances import assert_identical, assert_near

NORMAL = Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
ROWS = 3000  # each an independent estimate


def estimates(rule, oracle, costs, incoming, seed=0):
    """Values and gradients of many independent runs at the same costs, each [ROWS, n]."""
    leaf = costs.expand(ROWS, -1).clone().requires_grad_()
    y = rule(oracle, leaf, generator=torch.Generator().manual_seed(seed))
    return y.detach(), torch.autograd.grad(y, leaf, incoming.expand(ROWS, -1))[0]


def assert_mean(samples, expected):
    """Within 4 standard errors of what is expected."""
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((samples.mean(0) - expected).abs() <= 4 * error + 1e-9).all()


def softmin(c, sigma):
    return torch.softmax(-c / sigma, -1)


def cheaper_of_two(c, sigma):  # y = e_0 where c_0 + sigma z_0 < c_1 + sigma z_1
    first = NORMAL.cdf((c[..., 1] - c[..., 0]) / (sigma * math.sqrt(2)))
    return torch.stack([first, 1 - first], -1)


def cheaper_of_two_multiplied(c, sigma):  # the logarithms of positive costs get the noise
    return cheaper_of_two(c.log(), sigma)


def box(c, sigma):  # y_i = 1 where c_i + sigma z_i < 0
    return NORMAL.cdf(-c / sigma)


def clamped_box(c, sigma):  # y_i = 1 where max(c_i + sigma z_i, 0) < 0.5
    return NORMAL.cdf((0.5 - c) / sigma)


CASES = {  # rule, its settings, vertices, costs, expectation
    "gumbel": (dl.rules.Perturbed, {"noise": "gumbel"}, np.eye(4), [0.1, -0.4, 0.6, 0.2], softmin),
    "gaussian": (dl.rules.Perturbed, {}, np.eye(2), [0.3, -0.2], cheaper_of_two),
    "box": (dl.rules.Perturbed, {}, cube(4), [0.3, -0.2, 0.0, 1.1], box),
    "multiplicative": (dl.rules.PerturbedMultiplicative, {}, np.eye(2), [0.7, 1.1], cheaper_of_two_multiplied),
}
VARIANTS = [{}, {"control_variate": False}, {"antithetic": True}, {"antithetic": True, "control_variate": False}]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_unbiased(name, variant):
    kind, settings, vertices, costs, expectation = CASES[name]
    if variant.get("antithetic") and "noise" in settings:
        pytest.skip("Gumbel noise is not symmetric")
    sigma = 0.6
    oracle, _ = enumerated(vertices)
    costs = torch.tensor(costs, dtype=torch.float64)
    incoming = torch.randn(len(costs), dtype=torch.float64)
    values, gradients = estimates(kind(sigma, samples=6, **settings, **variant), oracle, costs, incoming)
    leaf = costs.clone().requires_grad_()
    expected = expectation(leaf, sigma)
    assert_mean(values, expected.detach())
    assert_mean(gradients, torch.autograd.grad(expected, leaf, incoming)[0])


def test_gradient_is_unbiased_on_nonnegative_costs():
    oracle = dl.oracles.FromCallable(lambda c: (c < 0.5).astype(float), (3,), cost_domain="nonnegative", batched=True)
    costs, incoming = torch.tensor([0.2, 0.6, 0.05], dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    values, gradients = estimates(dl.rules.Perturbed(0.4, samples=6), oracle, costs, incoming)
    leaf = costs.clone().requires_grad_()
    expected = clamped_box(leaf, 0.4)
    assert_mean(values, expected.detach())
    assert_mean(gradients, torch.autograd.grad(expected.sum(), leaf)[0])


@pytest.mark.parametrize("name", CASES)
def test_control_variate_and_pairs_reduce_the_variance(name):
    kind, settings, vertices, costs, _ = CASES[name]
    oracle, _ = enumerated(np.asarray(vertices) + 5.0)  # rewards far from 0, as after any shift of the solutions
    costs, incoming = torch.tensor(costs, dtype=torch.float64), torch.ones(len(costs), dtype=torch.float64)
    incoming[0] = 2.0
    plain, control = (
        estimates(kind(0.6, samples=6, control_variate=flag, **settings), oracle, costs, incoming)[1].var(0).mean()
        for flag in (False, True)
    )
    assert control < 0.5 * plain
    if "noise" not in settings:
        pairs = estimates(kind(0.6, samples=6, antithetic=True, **settings), oracle, costs, incoming)[1].var(0).mean()
        assert pairs < 0.5 * plain


def test_zero_costs_are_not_multiplied():
    oracle, _ = enumerated(cube(3))
    costs = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64, requires_grad=True)
    y = dl.rules.PerturbedMultiplicative(1.0)(oracle, costs)
    (gradient,) = torch.autograd.grad(y.sum(), costs)
    assert gradient[0] == 0
    assert gradient.isfinite().all()


def test_multiplicative_noise_has_mean_one():
    rule = dl.rules.PerturbedMultiplicative(0.5, samples=20000)
    noise = torch.randn(20000, 2, dtype=torch.float64)
    assert_mean(rule._moved(torch.tensor([2.0, -3.0], dtype=torch.float64), noise), torch.tensor([2.0, -3.0]).double())


@pytest.mark.parametrize(("k", "terms"), [(1, 10), (5, 10), (3, 50)])
def test_sum_of_gamma(k, terms):
    like = torch.zeros(k, dtype=torch.float64)
    sums = noises.sum_of_gamma(20000, like, k, terms, None).sum(-1)
    orders = torch.arange(1, terms + 1, dtype=torch.float64)
    assert_mean(sums[:, None], (1 / orders).sum() - math.log(terms))  # Euler's constant in the limit: Gumbel's mean
    assert_mean((sums - sums.mean())[:, None].square(), (1 / orders**2).sum())  # pi^2 / 6 in the limit
    if terms == 50:
        shares = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        quantiles = -torch.log(-torch.log(shares))
        assert ((sums[:, None] < quantiles).double().mean(0) - shares).abs().max() < 0.02


def imle_noise(seed, samples, costs, k, sigma, terms):
    generator = torch.Generator().manual_seed(seed)
    return sigma * noises.sum_of_gamma(samples, costs, k, terms, generator)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", ["subsets", "scattered", "assignment"])
def test_imle(name, symmetric):
    oracle, vertices = enumerated(POLYTOPES[name])
    costs = torch.randn(5, vertices.shape[1], dtype=torch.float64, requires_grad=True)
    incoming = torch.randn_like(costs)
    rule = dl.rules.IMLE(2.0, k=2, sigma=0.5, samples=7, symmetric=symmetric)
    y = rule(oracle, costs, generator=torch.Generator().manual_seed(3))
    (gradient,) = torch.autograd.grad(y, costs, incoming)
    scores = -costs.detach()  # the paper maximises scores plus noise
    noise = imle_noise(3, 7, scores, 2, 0.5, 10)
    here, target, opposite = (solve(vertices, -(scores + noise - s * 2.0 * incoming)) for s in (0, 1, -1))
    assert_near(y, here.mean(0))
    wanted = (target - opposite) / 2 if symmetric else target - here
    assert_near(gradient, wanted.mean(0) / 2.0, order=1)
    assert gradient.abs().max() > 0


def test_imle_without_noise_is_blackbox():
    oracle, _ = enumerated(POLYTOPES["subsets"])
    costs = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    incoming = torch.randn_like(costs)
    for symmetric, side in ((False, "improve"), (True, "both")):
        rule = dl.rules.IMLE(3.0, sigma=0.0, samples=2, symmetric=symmetric)
        ours = torch.autograd.grad(rule(oracle, costs), costs, incoming)[0]
        theirs = torch.autograd.grad(dl.Blackbox(3.0, side=side)(oracle, costs), costs, incoming)[0]
        assert_near(ours, theirs, order=1)


def test_one_call_for_all_samples_of_all_rows():
    oracle = Recorded(subsets(6, 2))
    costs = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    for rule, backward in (
        (dl.rules.Perturbed(samples=8), []),
        (dl.rules.IMLE(1.0, samples=8), [(8, 4, 6)]),
        (dl.rules.IMLE(1.0, samples=8, symmetric=True), [(2, 8, 4, 6)]),
    ):
        oracle.calls.clear()
        torch.autograd.grad(rule(oracle, costs), costs, torch.randn(4, 6))
        assert [tuple(call.shape) for call in oracle.calls] == [(8, 4, 6), *backward]


@pytest.mark.parametrize("symmetric", [False, True])
def test_adaptive_controller_step_by_step(symmetric):
    """The published controller, restated: a running mean of the number of non-zeros of a sample, against a target."""
    oracle, vertices = enumerated(POLYTOPES["subsets"])
    settings = {"k": 2, "sigma": 0.4, "samples": 3, "symmetric": symmetric}
    rule = dl.rules.AdaptiveIMLE(beta=0.6, step=0.05, decay=0.8, target=1.0, **settings)
    beta, running, grown, shrunk = 0.6, 1.0, 0, 0
    for step in range(40):
        costs = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
        incoming = torch.randn_like(costs)
        incoming[0] = 0.0  # counts as a row without non-zeros
        y = rule(oracle, costs, generator=torch.Generator().manual_seed(step))
        (gradient,) = torch.autograd.grad(y, costs, incoming)
        c = costs.detach()
        lam = beta * math.sqrt(c.square().sum()) / math.sqrt(incoming.square().sum())
        noise = imle_noise(step, 3, c, 2, 0.4, 10)
        better, here, worse = (solve(vertices, c + s * lam * incoming - noise) for s in (1, 0, -1))
        difference = (better - worse) / 2 if symmetric else better - here
        wanted = difference.mean(0) / lam if lam > 0 else 0 * c
        assert_near(gradient, wanted, order=1)
        running = 0.8 * running + 0.2 * (difference != 0).sum().item() / (4 * 3)
        grown, shrunk = grown + (running < 1), shrunk + (running >= 1)
        beta = max(0.0, beta + (0.05 if running < 1 else -0.05))
        assert rule.beta == pytest.approx(beta)
        assert rule.nonzeros == pytest.approx(running)
    assert grown  # both branches were taken
    assert shrunk


def test_adaptive_controller_shrinks_where_more_than_one_entry_changes():
    # two entries of four change in every sample: as a fraction that is 0.5 < 1, and beta would grow
    oracle, _ = enumerated(subsets(4, 1))
    rule = dl.rules.AdaptiveIMLE(beta=5.0, step=0.01, sigma=0.0, samples=1)
    for _ in range(30):
        costs = torch.tensor([0.0, 1.0, 2.0, 3.0], requires_grad=True)
        rule(oracle, costs)[0].backward()
    assert rule.beta == pytest.approx(5.0 - 30 * 0.01)
    assert rule.nonzeros > 1.9


def test_adaptive_rule_recovers_from_zero_and_ignores_batches_without_gradient():
    oracle, _ = enumerated(subsets(4, 1))
    rule = dl.rules.AdaptiveIMLE(beta=0.0, step=0.5, decay=0.0, sigma=0.0, samples=1)
    costs = torch.tensor([0.0, 1.0, 2.0, 3.0], requires_grad=True)
    (rule(oracle, costs) * 0.0).sum().backward()
    assert (rule.beta, rule.nonzeros) == (0.0, 1.0)
    rule(oracle, costs)[0].backward()
    assert (rule.beta, rule.nonzeros) == (0.5, 0.0)
    assert_identical(costs.grad, torch.zeros(4))


def test_training_goes_on_from_a_checkpoint(tmp_path):
    def model():
        rule = dl.rules.AdaptiveIMLE(beta=0.7, step=0.03, samples=3, sigma=0.4)
        layer = dl.SolverLayer(dl.oracles.TopK(5, 2), rule=rule)
        return torch.nn.Sequential(torch.nn.Linear(3, 5, dtype=torch.float64), layer)

    def train(network, steps, generator):
        inputs, gradients = torch.randn(4, 3, dtype=torch.float64, generator=generator), []
        for _ in range(steps):
            network.zero_grad()
            network[1](network[0](inputs), generator=generator)[:, 0].sum().backward()
            gradients.append(network[0].weight.grad.clone())
        return gradients

    generator = torch.Generator().manual_seed(0)
    network = model()
    train(network, 5, generator)
    rule = network[1].rule
    assert rule.beta != 0.7
    assert rule.nonzeros != 1.0
    torch.save({"model": network.state_dict(), "noise": generator.get_state()}, tmp_path / "checkpoint.pt")
    expected = train(network, 5, generator)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    other, generator = model(), torch.Generator()
    other.load_state_dict(saved["model"])
    generator.set_state(saved["noise"])
    for mine, theirs in zip(train(other, 5, generator), expected, strict=True):
        assert_identical(mine, theirs)
    assert (other[1].rule.beta, other[1].rule.nonzeros) == (rule.beta, rule.nonzeros)
    assert network.half().state_dict()["1.rule._extra_state"].dtype == torch.float64
    alone = dl.rules.AdaptiveIMLE()
    alone.load_state_dict(rule.state_dict())
    assert alone.beta == rule.beta
    assert list(alone.parameters()) == []
    assert copy.deepcopy(alone).beta == pickle.loads(pickle.dumps(alone)).beta == rule.beta
