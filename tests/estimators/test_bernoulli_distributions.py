"""The Bernoulli and hard concrete distributions as torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Independent, kl_divergence
from torch.distributions import RelaxedBernoulli as TorchRelaxedBernoulli

from difflayers import _random, estimators
from difflayers.distributions.bernoulli import (
    BernoulliReinMax,
    BernoulliStraightThrough,
    HardConcrete,
    RelaxedBernoulli,
)
from tests.tolerances import assert_identical, assert_near

integrate = pytest.importorskip("scipy.integrate")
stats = pytest.importorskip("scipy.stats")

DISCRETE = {
    BernoulliReinMax: estimators.reinmax_bernoulli,
    BernoulliStraightThrough: estimators.straight_through_bernoulli,
}
FUNCTIONS = {**DISCRETE, RelaxedBernoulli: estimators.relaxed_bernoulli, HardConcrete: estimators.hard_concrete}
each = pytest.mark.parametrize("cls", FUNCTIONS, ids=lambda cls: cls.__name__)
each_discrete = pytest.mark.parametrize("cls", DISCRETE, ids=lambda cls: cls.__name__)


def random(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@each
class TestAll:
    def test_samples_are_the_functions(self, cls):
        logits, g = random(3, 4).requires_grad_(), random(5, 3, 4)
        results = []
        for f in (
            lambda: cls(logits=logits, temperature=0.7).rsample((5,)),
            lambda: FUNCTIONS[cls](logits.expand(5, 3, 4), 0.7),
        ):
            torch.manual_seed(2)
            y = f()
            results.append((y, torch.autograd.grad(y, logits, g)[0]))
        (y, slope), (expected, expected_slope) = results
        assert_identical(y, expected)
        assert_near(slope, expected_slope, order=1)
        assert cls.has_rsample
        torch.manual_seed(2)
        sample = cls(logits=logits, temperature=0.7).sample((5,))
        assert_identical(sample, expected.detach())
        assert not sample.requires_grad

    def test_shapes(self, cls):
        for batch, shape in (((), ()), ((3,), (2,)), ((2, 3), (4, 5))):
            distribution = cls(logits=torch.zeros(batch))
            assert distribution.batch_shape == batch
            assert distribution.event_shape == ()
            y = distribution.rsample(shape)
            assert y.shape == shape + batch
            assert distribution.log_prob(y).shape == shape + batch
        assert cls(logits=0.5).rsample((2,)).shape == (2,)
        independent = Independent(cls(logits=torch.zeros(2, 3)), 1)
        assert independent.log_prob(independent.rsample((4,))).shape == (4, 2)

    def test_expand(self, cls):
        warmth = torch.tensor([[0.5], [2.0]])
        distribution = cls(logits=torch.tensor([[1.0], [-1.0]]), temperature=warmth, validate_args=False)
        expanded = distribution.expand((6, 2, 3))
        assert type(expanded) is cls
        assert expanded.batch_shape == (6, 2, 3)
        assert not expanded._validate_args
        torch.manual_seed(0)
        y = expanded.rsample((2,))
        torch.manual_seed(0)
        assert_identical(y, cls(logits=distribution.logits.expand(6, 2, 3), temperature=warmth).rsample((2,)))
        value = y if cls in DISCRETE else y.clamp(0.1, 0.9)
        assert_near(expanded.log_prob(value), distribution.log_prob(value))

    def test_expand_of_settings(self, cls):
        if cls is HardConcrete:
            distribution = cls(torch.zeros(2), lower=-0.3, upper=1.7)
            assert_near(distribution.expand((4, 2)).mean, distribution.mean.expand(4, 2))
        else:
            distribution = cls(probs=torch.tensor([0.2, 0.9]))
            assert_near(distribution.expand((4, 2)).probs, torch.tensor([0.2, 0.9]).expand(4, 2))

    def test_temperature_per_row_of_a_batch(self, cls):
        """torch.distributions.RelaxedBernoulli gives the wrong shape here."""
        logits = torch.zeros(2, 3)
        distribution = cls(logits=logits, temperature=torch.tensor([[0.5], [3.0]]))
        value = torch.ones(2, 3) if cls in DISCRETE else torch.full((2, 3), 0.3)
        result = distribution.log_prob(value)
        assert result.shape == (2, 3)
        for row, warmth in enumerate((0.5, 3.0)):
            assert_near(result[row], cls(logits=logits[row], temperature=warmth).log_prob(value[row]))

    def test_bad_input(self, cls):
        logits = torch.zeros(2, 3)
        name = f"difflayers.distributions.{cls.__name__}"
        with pytest.raises(ValueError, match=rf"{name}: argument 'temperature' must be a finite number in \(0"):
            cls(logits=logits, temperature=0.0)
        with pytest.raises(ValueError, match=rf"{name}: argument 'temperature' must be positive and finite"):
            cls(logits=logits, temperature=torch.tensor(-1.0))
        with pytest.raises(ValueError, match=rf"{name}: argument 'temperature' must be broadcastable .*\(2, 3\)"):
            cls(logits=logits, temperature=torch.ones(2))
        with pytest.raises(ValueError, match="constraint Real"):
            cls(logits=torch.tensor([math.nan]), validate_args=True)
        distribution = cls(logits=logits, validate_args=True)
        for outside in (-0.1, 1.5):
            with pytest.raises(ValueError, match="support"):
                distribution.log_prob(torch.full((2, 3), outside))
        with pytest.raises(ValueError, match="broadcastable"):
            distribution.log_prob(torch.zeros(2, 4))
        if cls is not HardConcrete:
            with pytest.raises(ValueError, match="probs"):
                cls()
            with pytest.raises(ValueError, match="probs"):
                cls(probs=torch.tensor(0.5), logits=torch.tensor(0.5))
            with pytest.raises(ValueError, match="probs"):
                cls(probs=torch.tensor(1.5), validate_args=True)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half(self, cls, dtype):
        distribution = cls(logits=torch.linspace(-9, 9, 300).to(dtype), temperature=0.3, validate_args=False)
        y = distribution.rsample((50,))
        assert y.dtype == dtype
        assert y.isfinite().all()
        log_prob = distribution.log_prob(y)
        assert log_prob.dtype == dtype
        assert log_prob.isfinite().all()


@each_discrete
class TestDiscrete:
    def test_is_a_bernoulli(self, cls):
        logits = random(4)
        own, other = cls(logits=logits), Bernoulli(logits=logits)
        value = torch.tensor([0.0, 1.0, 1.0, 0.0]).double()
        assert_identical(own.log_prob(value), other.log_prob(value))
        for name in ("mean", "variance", "mode"):
            assert_identical(getattr(own, name), getattr(other, name))
        assert_identical(own.entropy(), other.entropy())
        assert_identical(own.enumerate_support(), other.enumerate_support())
        third = Bernoulli(logits=random(4) / 2)
        assert_identical(kl_divergence(own, third), kl_divergence(other, third))
        assert_identical(kl_divergence(third, own), kl_divergence(third, other))

    def test_frequencies(self, cls):
        p = torch.tensor([0.0, 0.01, 0.3, 1.0])
        y = cls(probs=p).rsample((40_000,))
        assert ((y.mean(0) - p).abs() <= 4.5 * (p * (1 - p) / 40_000).sqrt()).all()  # 0 and 1 exactly
        assert ((y == 0) | (y == 1)).all()

    def test_probabilities_of_0_and_1_are_certain(self, cls, monkeypatch):
        for u in (0.0, 1 - 2.0**-53):
            monkeypatch.setattr(_random, "uniform", lambda shape, u=u, **s: torch.full(shape, u, dtype=torch.float64))
            distribution = cls(probs=torch.tensor([0.0, 1.0])).expand((3, 2))
            assert_identical(distribution.sample(), torch.tensor([0.0, 1.0]).expand(3, 2))

    def test_gradient_reaches_the_probabilities(self, cls):
        """E[z] = p: the mean gradient is 1, and without a choice there is none."""
        p = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64, requires_grad=True)
        cls(probs=p).rsample((100_000,)).mean(0).sum().backward()
        assert p.grad[[0, 3]].eq(0).all()
        assert (p.grad[1:3] - 1).abs().max() < 0.02

    def test_quadratic_loss(self, cls):
        """ReinMax is exact for it, straight-through is not: d/dp E[(z - c)^2] = 1 - 2 c."""
        logits = torch.full((400_000,), 1.0, dtype=torch.float64, requires_grad=True)
        (cls(logits=logits).rsample() - 0.3).square().sum().backward()
        p = torch.sigmoid(torch.tensor(1.0).double())
        exact = p * (1 - p) * (1 - 0.6)
        error = abs(float(logits.grad.mean() - exact)) / (logits.grad.std() / math.sqrt(400_000))
        assert (error < 4.5) == (cls is BernoulliReinMax)

    def test_as_a_posterior(self, cls):
        """A small evidence bound, as in a VAE."""
        torch.manual_seed(0)
        logits = torch.zeros(3, requires_grad=True)
        prior = Bernoulli(logits=torch.zeros(3))
        target = torch.tensor([1.0, 0.0, 1.0])
        optimiser = torch.optim.Adam([logits], lr=0.1)
        for _ in range(150):
            q = cls(logits=logits)
            loss = 8 * (q.rsample((16,)) - target).square().mean(0).sum() + kl_divergence(q, prior).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert (logits.sign() == target * 2 - 1).all()
        assert (logits.abs() > 1).all()


class TestRelaxedBernoulli:
    @pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
    def test_log_prob_against_torch(self, temperature):
        logits = random(6).requires_grad_()
        value = torch.rand(50, 6, dtype=torch.float64) * 0.98 + 0.01
        own = RelaxedBernoulli(logits=logits, temperature=temperature).log_prob(value)
        other = TorchRelaxedBernoulli(torch.tensor(temperature, dtype=torch.float64), logits=logits)
        expected = other.log_prob(value)
        assert_near(own, expected, factor=100)
        slopes = [torch.autograd.grad(x.sum(), logits)[0] for x in (own, expected)]
        assert_near(*slopes, order=1, factor=100)

    def test_density_integrates_to_the_distribution_function(self):
        for logit, temperature in ((0.0, 0.5), (2.0, 1.3), (-4.0, 4.0)):
            distribution = RelaxedBernoulli(logits=torch.tensor(logit).double(), temperature=temperature)
            density = lambda y: math.exp(distribution.log_prob(torch.tensor(y).double()))  # noqa: B023, E731
            for a, b in ((0.01, 0.3), (0.3, 0.99)):
                mass = distribution.cdf(torch.tensor(b).double()) - distribution.cdf(torch.tensor(a).double())
                assert abs(integrate.quad(density, a, b)[0] - float(mass)) < 1e-6

    def test_samples_have_the_distribution(self):
        distribution = RelaxedBernoulli(logits=torch.tensor(0.8).double(), temperature=0.6)
        y = distribution.rsample((20_000,))
        assert stats.kstest(distribution.cdf(y).numpy(), stats.uniform.cdf).pvalue > 1e-4

    @pytest.mark.parametrize("temperature", [1e-3, 0.05, 30.0])
    def test_log_prob_of_its_own_samples_is_finite(self, temperature):
        logits = torch.linspace(-60, 60, 200, requires_grad=True)
        distribution = RelaxedBernoulli(logits=logits, temperature=temperature)
        y = distribution.rsample((100,))
        log_prob = distribution.log_prob(y)
        assert log_prob.isfinite().all()
        assert torch.autograd.grad(log_prob.sum(), logits)[0].isfinite().all()
        assert distribution.log_prob(torch.tensor(0.0)).isfinite().all()
        assert distribution.log_prob(torch.tensor(1.0)).isfinite().all()

    def test_certain(self):
        p = torch.tensor([0.0, 1.0], requires_grad=True)
        y = RelaxedBernoulli(probs=p, temperature=0.5).rsample((100,))
        assert_identical(y.detach(), torch.tensor([0.0, 1.0]).expand(100, 2))
        y.sum().backward()
        assert p.grad.isfinite().all()


class TestHardConcrete:
    SETTINGS = ((0.3, 2 / 3, -0.1, 1.1), (-3.0, 0.2, -0.5, 1.3), (2.0, 2.0, -0.01, 1.5))

    @pytest.mark.parametrize(("logit", "temperature", "lower", "upper"), SETTINGS)
    def test_masses_density_and_moments(self, logit, temperature, lower, upper):
        logits = torch.tensor(logit).double()
        distribution = HardConcrete(logits, temperature, lower=lower, upper=upper)
        p = lambda z: math.exp(distribution.log_prob(torch.tensor(float(z)).double()))  # noqa: E731
        inside = integrate.quad(p, 1e-12, 1 - 1e-12, epsabs=1e-11, limit=200)[0]
        assert abs(p(0) + inside + p(1) - 1) < 1e-8
        assert abs(1 - p(0) - float(distribution.open_probability)) < 1e-12
        mean = integrate.quad(lambda z: z * p(z), 1e-12, 1 - 1e-12, epsabs=1e-11, limit=200)[0] + p(1)
        square = integrate.quad(lambda z: z * z * p(z), 1e-12, 1 - 1e-12, epsabs=1e-11, limit=200)[0] + p(1)
        # a lower end near 0 puts a singularity of the integrand near the interval
        near = 1e-4 if lower > -0.1 else 1e-8
        assert abs(float(distribution.mean) - mean) < near
        assert abs(float(distribution.variance) - (square - mean**2)) < near
        z = distribution.sample((40_000,))
        assert abs(float(z.mean()) - mean) < 4.5 * float(z.std()) / 200
        for value in (0, 1):
            seen = float((z == value).double().mean())
            assert abs(seen - p(value)) < 4.5 * math.sqrt(p(value) * (1 - p(value)) / 40_000)

    def test_gradients_of_the_moments(self):
        logits = random(4).requires_grad_()
        for f in (
            lambda x: HardConcrete(x, 0.7, validate_args=False).mean,
            lambda x: HardConcrete(x, 0.7, validate_args=False).variance,
            lambda x: HardConcrete(x, 0.7).log_prob(torch.tensor([0.0, 1.0, 0.2, 0.9]).double()),
        ):
            assert torch.autograd.gradcheck(f, logits)
        warmth = torch.tensor(0.7).double().requires_grad_()
        assert torch.autograd.gradcheck(lambda t: HardConcrete(logits.detach(), t).mean, warmth)

    def test_pathwise_gradient_is_that_of_the_mean(self):
        logits = torch.zeros(200_000, dtype=torch.float64, requires_grad=True)
        HardConcrete(logits).rsample().sum().backward()
        one = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        expected = torch.autograd.grad(HardConcrete(one).mean.sum(), one)[0]
        assert abs(logits.grad.mean() - expected) < 4.5 * logits.grad.std() / math.sqrt(200_000)

    def test_gate_and_certain_logits(self):
        x = torch.tensor([-math.inf, -1.0, 5.0, math.inf])
        distribution = HardConcrete(x)
        assert_identical(distribution.gate, estimators.hard_concrete_gate(x))
        assert_near(distribution.mean[[0, 3]], torch.tensor([0.0, 1.0]))
        assert_near(distribution.open_probability[[0, 3]], torch.tensor([0.0, 1.0]))
        assert_identical(distribution.log_prob(torch.tensor([0.0, 0.0, 0.0, 1.0]))[[0, 3]], torch.zeros(2))

    def test_bad_interval(self):
        with pytest.raises(ValueError, match=r"difflayers\.distributions\.HardConcrete: argument 'lower' must be"):
            HardConcrete(torch.zeros(2), lower=0.1)


@pytest.mark.parametrize("law", [BernoulliReinMax, BernoulliStraightThrough, RelaxedBernoulli, HardConcrete])
def test_generator(law):
    distribution = law(logits=torch.zeros(4))
    draws = [distribution.rsample((50,), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    again = distribution.sample((50,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(again, draws[0])
