"""The expected loss: its value, and its gradient against enumeration of everything that can be drawn."""

import itertools

import pytest
import torch

import difflayers as dl
from difflayers.ransac import Best, Hypotheses, Mean, Softmax, expected_loss
from difflayers.ransac.samplers._log_probability import log_probability
from difflayers.ransac.selection import Selection

RULES = [Mean(), Softmax(0.7), Best(), Best(of=2)]
each_rule = pytest.mark.parametrize("rule", RULES, ids=repr)


class Squared(Selection):
    """A user's own rule, with the leave-one-out of the base class."""

    def weights(self, scores, valid):
        square = torch.where(valid, 0.1 + scores.square(), 0)
        total = square.sum((-2, -1), keepdim=True)
        return square / torch.where(total > 0, total, 1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def hypotheses_of(scores, valid, log_prob=None):
    models = torch.zeros(*scores.shape, 1, dtype=scores.dtype)
    return Hypotheses(models, scores, valid, valid, torch.zeros(*scores.shape[:-1], 1, dtype=torch.int64), log_prob)


def random_hypotheses(*shape, seed=0):
    losses, scores = (torch.randn(2, *shape, dtype=torch.float64, generator=seeded(seed))).unbind(0)
    valid = torch.rand(shape, generator=seeded(seed + 1)) < 0.7
    return losses, scores, valid


class Enumerable:
    """A problem of n points, sets of k, with a loss, a score and a validity for each set, some with two models."""

    def __init__(self, n=4, k=2, seed=0, invalid=0.25):
        self.sets = torch.tensor(list(itertools.combinations(range(n), k)))
        shape = (len(self.sets), 2)
        generator = seeded(seed)
        self.losses = torch.rand(shape, dtype=torch.float64, generator=generator).requires_grad_()
        self.scores = (2 * torch.randn(shape, dtype=torch.float64, generator=generator)).requires_grad_()
        self.valid = torch.rand(shape, generator=generator) >= invalid
        self.logits = torch.randn(1, n, dtype=torch.float64, generator=generator).requires_grad_()
        self.leaves = (self.logits, self.losses, self.scores)

    def log_prob(self):
        return log_probability(self.logits, self.sets.unsqueeze(0)).squeeze(0)

    def drawn(self, rule, which):
        """The expected loss `[...]` of hypotheses drawn `[..., H]`."""
        hypotheses = hypotheses_of(self.scores[which], self.valid[which], self.log_prob()[which])
        return expected_loss(hypotheses, self.losses[which], rule)


@pytest.mark.parametrize("rule", [*RULES, Softmax(0.01), Squared()], ids=repr)
@pytest.mark.parametrize("draws", [1, 2, 3])
def test_gradient_is_unbiased_exactly(rule, draws):
    """The mean of the estimate over all that can be drawn, weighed by its probability, is the gradient of the mean."""
    problem = Enumerable()
    which = torch.tensor(list(itertools.product(range(len(problem.sets)), repeat=draws)))
    weights = rule.weights(problem.scores[which], problem.valid[which])
    whole = (weights * torch.where(problem.valid[which], problem.losses[which], 0)).sum((-2, -1))
    probability = problem.log_prob()[which].sum(-1).exp()
    assert abs(probability.sum() - 1) < 1e-12
    expected = torch.autograd.grad((probability * whole).sum(), problem.leaves, allow_unused=True)
    found = torch.autograd.grad(
        (probability.detach() * problem.drawn(rule, which)).sum(), problem.leaves, allow_unused=True
    )
    for a, b in zip(found, expected, strict=True):
        if b is None:
            assert a is None or (a == 0).all()
        else:
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-13)
    assert expected[0].abs().max() > 1e-3


@each_rule
def test_gradient_is_unbiased_with_the_sampler(rule):
    """Within 4 sigma, over repetitions of 8 draws of GumbelTopK."""
    problem, draws, repeat = Enumerable(5, 2, seed=3), 8, 3000
    sampler = dl.ransac.GumbelTopK()
    samples = sampler.sample(problem.logits.expand(repeat, -1), 2, draws, generator=seeded()).sort(-1).values
    which = (samples.unsqueeze(-2) == problem.sets).all(-1).long().argmax(-1)
    logits = problem.logits.detach().expand(repeat, -1).clone().requires_grad_()
    hypotheses = hypotheses_of(problem.scores[which], problem.valid[which], sampler.log_prob(logits, samples))
    loss = expected_loss(hypotheses, problem.losses[which], rule)
    found = torch.autograd.grad(loss.sum(), logits)[0]
    # the exact gradient: of n draws without regard to their order, by the probabilities of counts, is long; another
    # 40 repetitions as many, with the plain estimator L * grad log p, whose unbiasedness needs no argument
    many = sampler.sample(problem.logits.expand(40 * repeat, -1), 2, draws, generator=seeded(1)).sort(-1).values
    which = (many.unsqueeze(-2) == problem.sets).all(-1).long().argmax(-1)
    with torch.no_grad():
        value = expected_loss(hypotheses_of(problem.scores[which], problem.valid[which]), problem.losses[which], rule)
    jacobian = torch.autograd.functional.jacobian(lambda x: log_probability(x, problem.sets[None])[0], problem.logits)
    plain = (value.unsqueeze(-1) - value.mean()) * jacobian[:, 0][which].sum(1)
    sigma = (found.var(0) / repeat + plain.var(0) / len(plain)).sqrt()
    assert ((found.mean(0) - plain.mean(0)).abs() < 4 * sigma).all()
    # and it is worth it
    assert found.var(0).sum() < 0.5 * plain.var(0).sum()


def exact_and_estimated(logits, losses, sets, draws, seed):
    """Gradients of E loss by the logits: over all sets, and of one call with so many draws."""
    expected = torch.autograd.grad((log_probability(logits, sets.unsqueeze(0)).exp() * losses).sum(), logits)[0]
    sampler = dl.ransac.GumbelTopK()
    samples = sampler.sample(logits, sets.shape[1], draws, generator=seeded(seed))
    code = torch.full((int(1 << logits.shape[1]),), -1)
    code[(1 << sets).sum(-1)] = torch.arange(len(sets))
    of_samples = losses[code[(1 << samples).sum(-1)]].unsqueeze(-1)
    valid = torch.ones_like(of_samples, dtype=torch.bool)
    loss = expected_loss(hypotheses_of(of_samples, valid, sampler.log_prob(logits, samples)), of_samples)
    return expected, torch.autograd.grad(loss.sum(), logits)[0]


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0)


@pytest.mark.parametrize("seed", range(3))
def test_cosine_of_lines(seed):
    """Lines through 2 of 12 points, 3,000 draws: at least 0.99."""
    generator = seeded(seed)
    points = torch.rand(12, 2, dtype=torch.float64, generator=generator)
    points[:5, 1] = 0.4 * points[:5, 0] + 0.1
    logits = 0.5 * torch.randn(1, 12, dtype=torch.float64, generator=generator)
    sets = torch.tensor(list(itertools.combinations(range(12), 2)))
    solver = dl.ransac.Line2D()
    losses = dl.ransac.residual_loss(solver, solver.solve(points[sets]).models, points[:5], limit=0.1).squeeze(-1)
    assert cosine(*exact_and_estimated(logits.requires_grad_(), losses, sets, 3000, seed)) >= 0.99


@pytest.mark.parametrize("seed", range(3))
def test_cosine_of_sets_of_five(seed):
    """5 of 13 points, a loss that is small for sets of inliers only, 3,000 draws: at least 0.99."""
    generator = seeded(seed)
    sets = torch.tensor(list(itertools.combinations(range(13), 5)))
    outliers = (sets >= 6).sum(-1)
    losses = 1 - torch.exp(-outliers.double()) + 0.05 * torch.rand(len(sets), dtype=torch.float64, generator=generator)
    logits = 0.5 * torch.randn(1, 13, dtype=torch.float64, generator=generator)
    assert cosine(*exact_and_estimated(logits.requires_grad_(), losses, sets, 3000, seed)) >= 0.99


@pytest.mark.parametrize("shape", [(3, 1), (2, 5, 2), (4, 1, 3), (2, 0, 3), (3, 4, 0)])
@pytest.mark.parametrize("rule", [*RULES, Softmax(1e-3), Softmax(1e6), Best(of=1), Best(of=3)], ids=repr)
def test_leave_one_out_against_its_definition(rule, shape):
    for seed in range(5):
        losses, scores, valid = random_hypotheses(*shape, seed=seed)
        losses = torch.where(valid, losses, 0)
        found, expected = (f(losses, scores, valid) for f in (rule.without_each, lambda *a: defined(rule, *a)))
        assert found.shape == shape[:-1]
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def defined(rule, losses, scores, valid):
    return Selection.without_each(rule, losses, scores, valid)


@each_rule
def test_leave_one_out_of_a_dominating_draw(rule):
    """Scores 1,000 apart: without the best there is still a second."""
    scores = torch.tensor([[3000.0], [1000.0], [2000.0], [0.0]], dtype=torch.float64)
    losses, valid = torch.arange(1.0, 5.0, dtype=torch.float64).unsqueeze(-1), torch.ones(4, 1, dtype=torch.bool)
    found = rule.without_each(losses, scores, valid)
    by_rule = {"Mean()": [3.0, 8 / 3, 7 / 3, 2.0], "Best(of=2)": [8 / 3, 5 / 3, 4 / 3, 5 / 3]}
    expected = by_rule.get(repr(rule), [3.0, 1.0, 1.0, 1.0])
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12)


def test_weights():
    scores = torch.tensor([[1.0, 3.0], [3.0, -torch.inf], [9.0, 2.0]], dtype=torch.float64)
    valid = torch.tensor([[True, True], [True, False], [False, True]])
    assert torch.equal(Mean().weights(scores, valid), valid.double() / 4)
    assert Best().weights(scores, valid).flatten().tolist() == [0, 1, 0, 0, 0, 0]  # of equal ones the first
    expected = torch.tensor([1.0, 3.0, 3.0, 2.0], dtype=torch.float64).div(0.5).softmax(0)
    found = Softmax(0.5).weights(scores, valid)
    assert torch.allclose(found[valid], expected)
    assert (found[~valid] == 0).all()


@pytest.mark.parametrize("k", [1, 2, 3, 4, 9])
def test_best_of_k_against_all_choices(k):
    """The mean, over all choices of k of the draws that have a valid model, of the loss of the best model."""
    for seed in range(5):
        losses, scores, valid = random_hypotheses(6, 2, seed=seed)
        draws = valid.any(-1).nonzero().flatten().tolist()
        choices = list(itertools.combinations(draws, min(k, len(draws))))
        best = [(Best().weights(scores[list(c)], valid[list(c)]) * losses[list(c)]).sum() for c in choices]
        found = (Best(of=k).weights(scores, valid) * losses).sum()
        assert torch.allclose(found, torch.stack(best).mean(), rtol=1e-12)


@pytest.mark.parametrize("rule", [*RULES, Squared()], ids=repr)
def test_no_valid_hypothesis(rule):
    losses, scores, valid = random_hypotheses(3, 6, 2)
    valid[1] = False
    scores = scores.masked_fill(~valid, -torch.inf).requires_grad_()
    losses = losses.masked_fill(~valid, torch.nan).requires_grad_()
    log_prob = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    loss = expected_loss(hypotheses_of(scores, valid, log_prob), losses, rule)
    assert loss.shape == (3,)
    assert loss[1] == 0
    assert loss.isfinite().all()
    gradients = torch.autograd.grad(loss.sum(), (losses, scores, log_prob), allow_unused=True)
    for gradient in gradients:
        if gradient is not None:
            assert gradient.isfinite().all()
            assert (gradient[1] == 0).all()
            assert gradient.dim() == 2 or (gradient[~valid] == 0).all()
    assert (gradients[2] != 0).any()


@each_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_is_the_weighted_loss(rule, dtype):
    losses, scores, valid = (x.to(dtype) if x.is_floating_point() else x for x in random_hypotheses(2, 7, 3))
    log_prob = torch.randn(2, 7, dtype=dtype, requires_grad=True)
    found = expected_loss(hypotheses_of(scores, valid, log_prob), losses, rule)
    assert found.dtype == dtype
    assert torch.allclose(found, (rule.weights(scores, valid) * losses).sum((-2, -1)))
    module = dl.losses.ExpectedLoss(rule)
    assert torch.equal(module(hypotheses_of(scores, valid, log_prob), losses), found)
    assert repr(rule) in repr(module)


def test_pathwise_gradient_alone_without_log_probability():
    losses, scores, valid = random_hypotheses(2, 7, 3)
    scores.requires_grad_()
    loss = expected_loss(hypotheses_of(scores, valid), losses, Softmax(1.0))
    expected = (Softmax(1.0).weights(scores, valid) * losses).sum()
    assert torch.equal(torch.autograd.grad(loss.sum(), scores)[0], torch.autograd.grad(expected, scores)[0])


def test_bad_input():
    losses, scores, valid = random_hypotheses(2, 7, 3)
    hypotheses = hypotheses_of(scores, valid)
    with pytest.raises(ValueError, match=r"'losses' must have the shape of hypotheses.valid, \(2, 7, 3\)"):
        expected_loss(hypotheses, losses[..., 0])
    with pytest.raises(TypeError, match="floating-point"):
        expected_loss(hypotheses, valid)
    with pytest.raises(TypeError, match="'selection' must be"):
        expected_loss(hypotheses, losses, Mean)
    with pytest.raises(ValueError, match=r"must be finite where hypotheses\.valid, got nan"):
        expected_loss(hypotheses, torch.where(valid, torch.nan, losses))
    with pytest.raises(ValueError, match="'temperature'"):
        Softmax(0.0)
    with pytest.raises(ValueError, match="'of'"):
        Best(of=0)
    with pytest.raises(TypeError, match="'of'"):
        Best(of=2.5)


def test_through_the_layer():
    """Logits, points and threshold are trained by one loss; a problem without enough points takes no part."""
    points = torch.rand(3, 20, 2, generator=seeded())
    points[2, 1:] = torch.nan
    logits = torch.zeros(3, 20)
    threshold = torch.nn.Parameter(torch.tensor(0.1))
    points.requires_grad_(), logits.requires_grad_()
    layer = dl.ransac.RANSAC(dl.ransac.Line2D(), threshold=threshold, sampler=dl.ransac.GumbelTopK(), hypotheses=16)
    hypotheses = layer(points, logits, generator=seeded()).hypotheses
    losses = dl.ransac.residual_loss(dl.ransac.Line2D(), hypotheses.models, points[:, :8].nan_to_num(), limit=0.2)
    loss = expected_loss(hypotheses, losses, Softmax(1.0))
    assert loss[2] == 0
    loss.sum().backward()
    for x in (points, logits, threshold):
        assert x.grad.isfinite().all()
        assert (x.grad != 0).any()
    assert (logits.grad[2] == 0).all()


def test_learning():
    """Free logits, 200 points, 30 % inliers, 128 hypotheses, 150 steps: the samples are of inliers."""
    generator = seeded(1)
    points = torch.rand(4, 200, 2, dtype=torch.float64, generator=generator)
    noise = 0.002 * torch.randn(4, 60, dtype=torch.float64, generator=generator)
    points[:, :60, 1] = 0.5 * points[:, :60, 0] + 0.2 + noise
    inliers = (torch.arange(200) < 60).expand(4, -1)
    logits = torch.zeros(4, 200, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    solver = dl.ransac.Line2D()
    layer = dl.ransac.RANSAC(solver, threshold=0.01, sampler=dl.ransac.GumbelTopK(), hypotheses=128, refiner=None)
    for _ in range(150):
        hypotheses = layer(points, logits, generator=generator).hypotheses
        losses = dl.ransac.residual_loss(solver, hypotheses.models, points[:, :60], limit=0.02)
        optimizer.zero_grad()
        expected_loss(hypotheses, losses).sum().backward()
        optimizer.step()
    samples = layer.sampler.sample(logits, 2, 1000, generator=generator)
    share = inliers.gather(1, samples.flatten(1)).double().mean(-1)
    assert (share >= 0.98).all(), share
