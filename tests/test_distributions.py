"""The categorical distributions: laws, gradients, densities, and use in a variational autoencoder."""

import math

import pytest
import torch
from torch import nn
from torch.autograd import grad, gradcheck
from torch.distributions import Independent, OneHotCategorical, kl_divergence

import difflayers as dl
from difflayers import distributions as dd
from difflayers.estimators import Exact, expectation
from tests.tolerances import assert_identical, assert_near

F64, INF = torch.float64, math.inf
ONE_HOT = [
    dd.OneHotCategoricalReinMax,
    dd.OneHotCategoricalStraightThrough,
    dd.OneHotCategoricalGumbelSoftmax,
    dd.OneHotCategoricalGumbelRao,
]
RELAXED = [dd.RelaxedOneHotCategorical, dd.LogRelaxedOneHotCategorical]
each_one_hot = pytest.mark.parametrize("law", ONE_HOT, ids=lambda law: law.__name__)
each_relaxed = pytest.mark.parametrize("law", RELAXED, ids=lambda law: law.__name__)
each_law = pytest.mark.parametrize("law", ONE_HOT + RELAXED, ids=lambda law: law.__name__)
ESTIMATOR = {
    dd.OneHotCategoricalReinMax: dl.reinmax,
    dd.OneHotCategoricalStraightThrough: dl.straight_through,
    dd.OneHotCategoricalGumbelSoftmax: lambda x, t, **s: dl.gumbel_softmax(x, t, hard=True, **s),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def logits_of(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=seeded(seed))


@each_one_hot
def test_shapes_and_samples(law):
    q = law(0.7, logits=logits_of(3, 5))
    assert q.has_rsample
    assert isinstance(q, OneHotCategorical)
    for sample in (q.rsample((7, 2)), q.sample((7, 2))):
        assert sample.shape == (7, 2, 3, 5)
        assert ((sample == 0) | (sample == 1)).all()
        assert (sample.sum(-1) == 1).all()
    assert q.log_prob(q.rsample((7, 2))).shape == (7, 2, 3)
    assert_identical(q.rsample(generator=seeded()), q.sample(generator=seeded()))
    wide = q.expand((4, 3))
    assert type(wide) is law
    assert wide.batch_shape == (4, 3)
    assert wide.temperature == 0.7
    assert wide.rsample((2,)).shape == (2, 4, 3, 5)
    assert not q.sample().requires_grad
    independent = Independent(q, 1)
    assert independent.log_prob(independent.rsample()).shape == ()


@each_one_hot
def test_law(law):
    q = law(logits=torch.tensor([1.0, 0.0, -INF, -1.0], dtype=F64))
    n = 40_000
    frequency = q.sample((n,), generator=seeded()).mean(0)
    assert frequency[2] == 0
    sigma = (q.probs * (1 - q.probs) / n).sqrt()
    assert ((frequency - q.probs).abs() <= 4 * sigma).all()


@pytest.mark.parametrize("law", list(ESTIMATOR), ids=lambda law: law.__name__)
def test_samples_and_gradients_are_the_estimators(law):
    logits = logits_of(6, 4).requires_grad_()
    weight = logits_of(6, 4, seed=1)
    temperature = torch.rand(6, 1, dtype=F64) + 0.5
    sample = law(temperature, logits=logits).rsample(generator=seeded())
    normal = logits.log_softmax(-1)
    expected = ESTIMATOR[law](normal, temperature, generator=seeded())
    assert_identical(sample, expected)
    assert_near(grad((sample * weight).sum(), logits)[0], grad((expected * weight).sum(), logits)[0], order=1)


@each_one_hot
def test_log_prob_entropy_and_support_are_torchs(law):
    logits = logits_of(3, 4)
    mine, theirs = law(logits=logits), OneHotCategorical(logits=logits)
    support = mine.enumerate_support()
    assert_near(mine.log_prob(support), theirs.log_prob(support))
    assert_near(mine.log_prob(support).exp().sum(0), torch.ones(3, dtype=F64))
    assert_near(mine.entropy(), theirs.entropy())
    assert_identical(mine.mode, theirs.mode)
    with pytest.raises(ValueError, match="support"):
        mine.log_prob(torch.full((3, 4), 0.25, dtype=F64))


@each_one_hot
def test_masks_and_probabilities_of_zero(law):
    """Log-probabilities of -inf, and gradients without NaN, through samples, log_prob, entropy-like terms and KL."""
    logits = torch.tensor([[0.5, -INF, 1.0], [0.0, 0.3, -INF]], dtype=F64, requires_grad=True)
    probs = logits.detach().softmax(-1).requires_grad_()
    for leaf, q in ((logits, law(logits=logits)), (probs, law(probs=probs))):
        assert q.log_prob(torch.tensor([0.0, 1.0, 0.0], dtype=F64))[0] == -INF
        sample = q.rsample((50,))
        assert (sample.detach()[:, 0, 1] == 0).all()
        assert q.log_prob(sample).isfinite().all()
        prior = OneHotCategorical(logits=torch.zeros(2, 3, dtype=F64))
        masked = OneHotCategorical(logits=torch.where(logits.detach() == -INF, -INF, torch.zeros(2, 3, dtype=F64)))
        value = q.log_prob(sample).mean() + kl_divergence(q, prior).sum() + kl_divergence(q, masked).sum()
        assert grad(value, leaf)[0].isfinite().all()
        present = leaf.detach() > (0 if leaf is probs else -INF)
        pi = probs.detach()[present].reshape(2, 2)
        assert_near(kl_divergence(q, masked), (pi * (2 * pi).log()).sum(-1))
        assert kl_divergence(masked, prior).isfinite().all()
        assert (kl_divergence(law(logits=torch.zeros(2, 3, dtype=F64)), masked) == INF).all()


@each_one_hot
def test_kl_is_torchs(law):
    p, q = logits_of(3, 4), logits_of(3, 4, seed=1)
    expected = kl_divergence(OneHotCategorical(logits=p), OneHotCategorical(logits=q))
    assert_near(kl_divergence(law(logits=p), OneHotCategorical(logits=q)), expected)
    assert_near(kl_divergence(law(logits=p), law(logits=q)), expected)
    assert_near(kl_divergence(OneHotCategorical(logits=p), law(logits=q)), expected)


@pytest.mark.parametrize("law", ONE_HOT[:2], ids=lambda law: law.__name__)
def test_a_sampled_divergence_has_the_gradient_of_the_divergence(law):
    """E log q(z) - log p(z), as Pyro-style code estimates it; without a gradient by z half of it would be missing."""
    logits = logits_of(4).requires_grad_()
    target = OneHotCategorical(logits=logits_of(4, seed=3))
    exact = kl_divergence(law(logits=logits), target)
    (expected,) = grad(exact, logits)
    many = logits.detach().expand(40_000, 4).clone().requires_grad_()
    q = law(logits=many)
    sample = q.rsample(generator=seeded())
    losses = q.log_prob(sample) - law(logits=target.logits).log_prob(sample)
    (gradients,) = grad(losses.sum(), many)
    assert abs(losses.mean() - exact) < 4 * losses.std() / 200
    assert ((gradients.mean(0) - expected).abs() < 4 * gradients.std(0) / 200).all()
    assert expected.abs().max() > 10 * gradients.std(0).max() / 200  # so that 4 sigma can fail


@each_one_hot
def test_fits_a_target(law):
    """Gradient descent on single samples finds the distribution that it is told to match."""
    target = torch.tensor([0.6, 0.3, 0.1], dtype=F64)
    # those of Gumbel-Softmax kind are biased even for a linear loss
    temperature = 0.25 if law in ONE_HOT[2:] else 1.0
    logits = torch.zeros(3, dtype=F64, requires_grad=True)
    optimiser = torch.optim.Adam([logits], 0.05)
    torch.manual_seed(0)
    for _ in range(300):
        q = law(temperature, logits=logits.expand(64, 3))
        sample = q.rsample()
        optimiser.zero_grad()
        (q.log_prob(sample) - (sample * target.log()).sum(-1)).mean().backward()
        optimiser.step()
    assert (logits.softmax(-1) - target).abs().max() < 0.05


class Autoencoder(nn.Module):
    """Two latents of three classes; a linear decoder, so that the squared error is quadratic in the sample."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(5, 6), nn.Linear(6, 5)

    def loss(self, x, draw):
        logits = self.encoder(x).unflatten(-1, (2, 3))
        q = dd.OneHotCategoricalReinMax(logits=logits)
        prior = OneHotCategorical(logits=torch.zeros_like(logits))

        def error(z):
            return (self.decoder(z.flatten(-2)) - x).square().sum(-1)

        return (draw(error, q, logits) + kl_divergence(q, prior).sum(-1)).mean()


def test_variational_autoencoder():
    """ReinMax's -ELBO gradient is exact in the mean for a quadratic error, and training with it works."""
    torch.manual_seed(0)
    model = Autoencoder().double()
    x = torch.eye(5, dtype=F64)[:4] * 3

    def exactly(error, q, logits):
        return expectation(error, logits, estimator=Exact())

    def sampled(error, q, logits):
        return error(q.rsample(generator=generator))

    parameters = list(model.parameters())
    expected = torch.cat([g.flatten() for g in grad(model.loss(x, exactly), parameters)])
    gradients, generator = [], seeded(1)
    for _ in range(800):
        gradients.append(torch.cat([g.flatten() for g in grad(model.loss(x, sampled), parameters)]))
    gradients = torch.stack(gradients)
    assert ((gradients.mean(0) - expected).abs() <= 4.5 * gradients.std(0) / len(gradients) ** 0.5 + 1e-12).all()

    before = model.loss(x, exactly).item()
    optimiser = torch.optim.Adam(parameters, 0.04)
    for _ in range(200):
        optimiser.zero_grad()
        model.loss(x, sampled).backward()
        optimiser.step()
    after = model.loss(x, exactly).item()
    assert after < 0.6 * before  # the best without using the latents is 6.75 of 9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@each_law
def test_half_precision(law, dtype):
    q = law(1.0, logits=torch.zeros(100, 4096, dtype=dtype))
    sample = q.rsample(generator=seeded())
    assert sample.dtype == dtype
    assert not sample.isnan().any()
    if law in ONE_HOT:
        assert q.log_prob(sample).isfinite().all()
    # uniform: the mean place of the largest is 1/2; torch's own gives 0.03 and 0.004 at n = 32768
    place = law(1.0, logits=torch.zeros(500, 4096, dtype=dtype)).rsample(generator=seeded()).float().argmax(-1)
    assert abs(place.double().mean() / 4096 - 0.5) < 4 * (1 / 12 / 500) ** 0.5


def test_gumbel_rao_copies_its_settings():
    q = dd.OneHotCategoricalGumbelRao(0.5, logits=torch.zeros(3, 4), samples=3)
    assert q.expand((2, 3)).samples == 3


# the relaxed ones


def test_relaxed_samples_are_those_of_gumbel_softmax():
    logits = logits_of(3, 5).requires_grad_()
    temperature = torch.tensor([[0.3], [1.0], [2.0]], dtype=F64)
    sample = dd.RelaxedOneHotCategorical(temperature, logits=logits).rsample((2,), generator=seeded())
    wide = logits.log_softmax(-1).expand(2, 3, 5)
    expected = dl.gumbel_softmax(wide, temperature, generator=seeded())
    assert_near(sample, expected)
    logarithm = dd.LogRelaxedOneHotCategorical(temperature, logits=logits).rsample((2,), generator=seeded())
    assert_near(logarithm.exp(), expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_density_is_torchs_where_torchs_is_right(temperature):
    logits = logits_of(4, 5)
    mine = dd.RelaxedOneHotCategorical(temperature, logits=logits)
    theirs = torch.distributions.RelaxedOneHotCategorical(torch.tensor(temperature, dtype=F64), logits=logits)
    y = mine.rsample((6,))
    expected = theirs.log_prob(y)
    assert_near(mine.log_prob(y), expected, factor=100)  # the remembered logarithm
    assert_near(mine.log_prob(y.clone()), expected, factor=100)
    logarithm = dd.LogRelaxedOneHotCategorical(temperature, logits=logits).log_prob(y.log())
    assert_near(logarithm - y.log().sum(-1), expected, factor=100)


def test_density_integrates_to_one():
    """Two classes, one of them free; and three of which one is masked."""
    u = torch.linspace(0, 1, 20_001, dtype=F64)[1:-1]
    y = torch.stack([u, 1 - u], -1)
    for temperature in (0.7, 1.0, 2.5):
        q = dd.RelaxedOneHotCategorical(temperature, logits=torch.tensor([0.4, -0.3], dtype=F64))
        assert abs(torch.trapezoid(q.log_prob(y).exp(), u) - 1) < 0.02
        masked = dd.RelaxedOneHotCategorical(temperature, logits=torch.tensor([0.4, -INF, -0.3], dtype=F64))
        padded = torch.stack([u, torch.zeros_like(u), 1 - u], -1)
        assert_near(masked.log_prob(padded), q.log_prob(y))
        outside = torch.tensor([0.2, 0.3, 0.5], dtype=F64)
        assert masked.log_prob(outside) == -INF


@each_relaxed
def test_temperature_per_row_and_expand(law):
    logits, temperature = logits_of(5, 3), torch.rand(5, 1, dtype=F64) + 0.1
    q = law(temperature, logits=logits)
    sample = q.rsample((2,))
    each = [law(temperature[i].item(), logits=logits[i]).log_prob(sample[:, i]) for i in range(5)]
    assert q.log_prob(sample).shape == (2, 5)
    assert_near(q.log_prob(sample), torch.stack(each, 1), factor=1e4)  # clones: by their rounded logarithms
    wide = q.expand((4, 5))
    assert type(wide) is law
    assert wide.log_prob(wide.rsample()).shape == (4, 5)
    assert q.event_shape == (3,)
    assert_near(q.probs, logits.softmax(-1))


@each_relaxed
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_own_samples_at_low_temperature(law, dtype):
    """n = 1000 at 0.01: nearly all of y is exactly 0, and torch's class raises or gives inf."""
    logits = logits_of(20, 1000, dtype=dtype).requires_grad_()
    temperature = torch.tensor(0.01, dtype=dtype, requires_grad=True).reshape(1, 1)
    q = law(temperature, logits=logits)
    sample = q.rsample()
    density = q.log_prob(sample)
    assert density.isfinite().all()
    assert all(g.isfinite().all() for g in grad(density.sum(), (logits, temperature)))
    assert q.log_prob(sample.detach().clone()).isfinite().all()


def test_remembered_logarithm_is_exact_at_low_temperature():
    logits = logits_of(2, 50)
    y = (q := dd.RelaxedOneHotCategorical(0.003, logits=logits)).rsample(generator=seeded())
    x = (p := dd.LogRelaxedOneHotCategorical(0.003, logits=logits)).rsample(generator=seeded())
    assert (y == 0).any()
    assert_near(q.log_prob(y), p.log_prob(x) - x.sum(-1))


@each_relaxed
def test_gradients_of_the_density(law):
    logits, temperature = logits_of(2, 3), torch.tensor([[0.5], [1.5]], dtype=F64)
    y = logits_of(2, 3, seed=1).softmax(-1)
    value = y if law is dd.RelaxedOneHotCategorical else y.log()

    def density(logits, temperature, value):
        return law(temperature, logits=logits, validate_args=False).log_prob(value)

    assert gradcheck(density, [t.requires_grad_() for t in (logits, temperature, value.clone())])


@each_relaxed
def test_masked_relaxed(law):
    logits = torch.tensor([[0.3, -INF, 1.0, 0.2]], dtype=F64, requires_grad=True)
    q = law(0.5, logits=logits)
    sample = q.rsample((10,))
    absent = 0 if law is dd.RelaxedOneHotCategorical else -INF
    assert (sample[..., 1] == absent).all()
    density = q.log_prob(sample)
    three = law(0.5, logits=logits.detach()[:, [0, 2, 3]])
    assert_near(density, three.log_prob(sample[..., [0, 2, 3]].clone()), factor=1e3)
    assert grad(density.sum(), logits)[0].isfinite().all()


@each_law
def test_vmap(law):
    logits = logits_of(6, 3)

    def value(logits, weight):
        return (law(0.8, logits=logits, validate_args=False).rsample() * weight).sum()

    weight = torch.arange(3.0, dtype=F64)
    gradients = torch.func.vmap(torch.func.grad(value), in_dims=(0, None), randomness="different")(logits, weight)
    assert gradients.shape == (6, 3)
    assert gradients.isfinite().all()
    assert gradients.abs().sum() > 0


@each_law
def test_bad_input(law):
    name = rf"^difflayers\.distributions\.{law.__name__}: argument 'temperature' must"
    for temperature, shown in ((0.0, "got 0"), (-1.0, "got -1"), (math.nan, "got nan")):
        with pytest.raises(ValueError, match=f"{name} be a finite number.*{shown}"):
            law(temperature, logits=torch.zeros(3))
    with pytest.raises(ValueError, match=f"{name} be broadcastable .*, got \\(5,\\); use keepdim"):
        law(torch.ones(5), logits=torch.zeros(5, 3))
    with pytest.raises(ValueError, match=f"{name} be positive"):
        law(torch.tensor(-1.0), logits=torch.zeros(5, 3))
    with pytest.raises(TypeError, match=f"{name} be a number, got str"):
        law("1", logits=torch.zeros(3))
    with pytest.raises(ValueError, match=r"probs.*logits"):
        law(1.0)
    with pytest.raises(ValueError, match="logits"):
        law(1.0, logits=torch.tensor([math.nan, 0.0]))
