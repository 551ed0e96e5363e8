"""Bias without sampling noise: every outcome is enumerated, and its gradient weighted by its probability.

An outcome is made to happen by the uniform number in the middle of its interval, so it is the public functions
that are looked at, whatever path they take.
"""

import itertools

import pytest
import torch

from difflayers import _random, estimators

CLASSES, LATENTS = 3, 4


@pytest.fixture
def outcome(monkeypatch):
    """Makes the next samples those of `index` [B] for logits [B, n]."""

    def choose(logits, index):
        cumulative = torch.softmax(logits.detach(), 1).cumsum(1)
        upper = cumulative.gather(1, index[:, None])
        width = torch.softmax(logits.detach(), 1).gather(1, index[:, None])
        monkeypatch.setattr(_random, "uniform", lambda *a, **s: upper - width / 2)

    return choose


def problem(seed=0, classes=CLASSES):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(LATENTS, classes, dtype=torch.float64, generator=generator)
    linear = torch.randn(LATENTS * classes, dtype=torch.float64, generator=generator)
    full = torch.randn(LATENTS * classes, LATENTS * classes, dtype=torch.float64, generator=generator)

    def loss(sample, degree):  # [..., L, C] -> [...]: couples the latents, not separable, not convex
        flat = sample.flatten(-2)
        value = flat @ linear
        if degree >= 2:
            value = value + ((flat @ full) * flat).sum(-1)
        return value + value**3 / 10 if degree == 3 else value

    return logits, loss


def outcomes(classes=CLASSES):
    return torch.tensor(list(itertools.product(range(classes), repeat=LATENTS)))  # [C^L, L]


def probability(logits, index):
    """[C^L]."""
    logarithms = torch.log_softmax(logits, 1)
    return sum(logarithms[i][index[:, i]] for i in range(LATENTS)).exp()


def exact_gradient(logits, loss, degree):
    leaf = logits.clone().requires_grad_()
    index = outcomes(logits.shape[1])
    samples = torch.nn.functional.one_hot(index, logits.shape[1]).double()
    return torch.autograd.grad((probability(leaf, index) * loss(samples, degree)).sum(), leaf)[0]


def expected_gradient(run, logits, loss, degree, outcome):
    """The mean of an estimator's gradient over all outcomes."""
    index = outcomes(logits.shape[1])
    leaf = logits.clone().requires_grad_()
    rows = leaf.expand(len(index), *logits.shape)
    outcome(rows.flatten(0, 1), index.flatten())
    sample = run(rows)
    assert (sample.argmax(2) == index).all()
    return torch.autograd.grad((probability(logits, index) * loss(sample, degree)).sum(), leaf)[0]


def bias(run, degree, outcome, seed=0, classes=CLASSES):
    logits, loss = problem(seed, classes)
    exact = exact_gradient(logits, loss, degree)
    return float((expected_gradient(run, logits, loss, degree, outcome) - exact).norm() / exact.norm())


def sampled_bias(run, degree, count, seed=0):
    """By sampling, for estimators with more noise than the sample itself."""
    logits, loss = problem(seed)
    exact = exact_gradient(logits, loss, degree)
    torch.manual_seed(seed)
    leaf = logits.clone().requires_grad_()
    total = loss(run(leaf.expand(count, *logits.shape)), degree).mean()
    return float((torch.autograd.grad(total, leaf)[0] - exact).norm() / exact.norm())


@pytest.mark.parametrize("seed", [0, 1, 2])
class TestBias:
    def test_straight_through_is_exact_for_linear_losses(self, seed, outcome):
        assert bias(estimators.straight_through, 1, outcome, seed) < 1e-10

    @pytest.mark.parametrize("degree", [1, 2])
    def test_reinmax_is_exact_for_quadratic_losses(self, seed, degree, outcome):
        assert bias(estimators.reinmax, degree, outcome, seed) < 1e-10

    def test_only_there(self, seed, outcome):
        assert bias(estimators.reinmax, 3, outcome, seed) > 1e-3
        assert bias(lambda x: estimators.reinmax(x, 1.3), 2, outcome, seed) > 1e-3
        assert bias(estimators.straight_through, 2, outcome, seed) > 1e-3
        assert bias(lambda x: estimators.straight_through(x, 1.3), 1, outcome, seed) > 1e-3

    def test_reinmax_below_the_others_on_the_quadratic(self, seed, outcome):
        own = bias(estimators.reinmax, 2, outcome, seed)
        assert own < bias(estimators.straight_through, 2, outcome, seed)
        for gap in (1.0, "probability"):
            gapped = lambda x, gap=gap: estimators.gapped_straight_through(x, gap=gap)  # noqa: E731
            assert own < bias(gapped, 2, outcome, seed)

    def test_reinmax_below_gumbel_softmax_on_the_quadratic(self, seed, outcome):
        hard = lambda x: estimators.gumbel_softmax(x, 0.7, hard=True)  # noqa: E731
        own = bias(estimators.reinmax, 2, outcome, seed)
        assert own < 0.05 < sampled_bias(hard, 2, 20_000, seed)

    def test_two_classes_each_with_its_own_logit(self, seed, outcome, monkeypatch):
        """The Bernoulli estimators are exact where the categorical ones are."""
        two, loss = problem(seed, classes=2)
        logits = two[:, 0] - two[:, 1]
        index = outcomes(2)
        weights = probability(torch.stack([logits, torch.zeros_like(logits)], 1), index)
        for run, degree in ((estimators.straight_through_bernoulli, 1), (estimators.reinmax_bernoulli, 2)):
            leaf = logits.clone().requires_grad_()
            p = torch.sigmoid(logits)
            monkeypatch.setattr(_random, "uniform", lambda *a, p=p, **s: torch.where(index == 0, p / 2, (1 + p) / 2))
            sample = run(leaf.expand(len(index), LATENTS))
            assert (sample == (index == 0)).all()
            value = loss(torch.stack([sample, 1 - sample], -1), degree)
            actual = torch.autograd.grad((weights * value).sum(), leaf)[0]
            expected = exact_gradient(torch.stack([logits, torch.zeros_like(logits)], 1), loss, degree)[:, 0]
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def jacobian(p):
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
class TestPublishedForms:
    """One gradient of every outcome, against the formulas as they are published."""

    def setting(self, outcome):
        logits = torch.randn(5, 6, dtype=torch.float64)
        index = torch.tensor([0, 3, 5, 1, 2])
        outcome(logits, index)
        return logits.requires_grad_(), torch.nn.functional.one_hot(index, 6).double(), torch.randn(5, 6).double()

    def test_reinmax_closed_form(self, temperature, outcome):
        logits, sample, g = self.setting(outcome)
        y = estimators.reinmax(logits, temperature)
        assert (y == sample).all()
        actual = torch.autograd.grad(y, logits, g)[0]
        middle = (torch.softmax(logits / temperature, 1) + sample) / 2
        matrix = 2 * jacobian(middle) - jacobian(torch.softmax(logits, 1)) / 2
        expected = (matrix @ g[:, :, None])[..., 0].detach()
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
        centred = expected - expected.mean(1, keepdim=True)  # as the official code returns it
        torch.testing.assert_close(actual, centred, rtol=1e-6, atol=1e-12)

    def test_reinmax_algorithm_2(self, temperature, outcome):
        logits, sample, g = self.setting(outcome)
        actual = torch.autograd.grad(estimators.reinmax(logits, temperature), logits, g)[0]
        first = (sample + torch.softmax(logits / temperature, 1)) / 2
        first = torch.softmax((first.log() - logits).detach() + logits, 1)
        second = 2 * first - 0.5 * torch.softmax(logits, 1)
        expected = torch.autograd.grad(second - second.detach() + sample, logits, g)[0]
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)

    def test_straight_through(self, temperature, outcome):
        logits, _, g = self.setting(outcome)
        actual = torch.autograd.grad(estimators.straight_through(logits, temperature), logits, g)[0]
        p = torch.softmax(logits / temperature, 1)
        expected = (jacobian(p) @ g[:, :, None])[..., 0].detach() / temperature
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)

    def test_pytorchs_own_surrogate_of_gumbel_softmax(self, temperature, outcome):
        """The soft and the hard sample have the same gradient, that of PyTorch's function at the same noise."""
        logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
        g = torch.randn(4, 5, dtype=torch.float64)
        results = []
        for hard in (False, True):
            y = estimators.gumbel_softmax(logits, temperature, hard=hard, generator=torch.Generator().manual_seed(1))
            results.append((y.detach(), torch.autograd.grad(y, logits, g)[0]))
        (soft, slope), (hard_sample, hard_slope) = results
        torch.testing.assert_close(slope, hard_slope, rtol=1e-12, atol=1e-13)
        assert (hard_sample.argmax(1) == soft.argmax(1)).all()
        expected = (jacobian(soft) @ g[:, :, None])[..., 0] / temperature
        torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-12)
