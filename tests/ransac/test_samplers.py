"""Samplers against enumeration: distributions, exact log-probabilities, gradients, bad input."""

import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import difflayers as dl
from difflayers.ransac.samplers._draw import distinct, plackett_luce
from difflayers.ransac.samplers._log_probability import log_probability, mass_outside
from difflayers.ransac.samplers.gumbel_top_k import conditional_keys

INF, NAN = math.inf, math.nan
RANSAC_SAMPLERS = [
    dl.ransac.Uniform(), dl.ransac.Weighted(), dl.ransac.PROSAC(), dl.ransac.PROSAC(50), dl.ransac.GumbelTopK(),
]  # fmt: skip
each_sampler = pytest.mark.parametrize("sampler", RANSAC_SAMPLERS, ids=repr)
LOGITS = torch.tensor([[0.3, -1.2, -INF, 2.0, 0.0, 0.9], [0.0, 4.0, 3.5, -2.0, -INF, -INF]], dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def probability_of_order(weights, order):
    """Of a Plackett-Luce draw, by its definition."""
    result, left = 1.0, math.fsum(weights)
    for i in order:
        result *= weights[i] / left
        left -= weights[i]
    return result


def probabilities(weights, size):
    """Of all sets of points with a weight, `{set: probability}`, by summing over all orders."""
    points = [i for i, w in enumerate(weights) if w > 0]
    return {
        chosen: sum(probability_of_order(weights, order) for order in itertools.permutations(chosen))
        for chosen in itertools.combinations(points, size)
    }


def assert_distribution(samples, expected):
    """Chi-square of drawn sets `[H, k]` against `{set: probability}`; none but these may be drawn."""
    ordered = [tuple(row) for row in samples.sort(-1).values.tolist()]
    assert set(ordered) <= {s for s, p in expected.items() if p > 0}
    counts = dict.fromkeys(expected, 0)
    for row in ordered:
        counts[row] += 1
    # classes that are expected less than 5 times go together
    pairs = sorted((p * len(ordered), counts[s]) for s, p in expected.items())
    small = [pair for pair in pairs if pair[0] < 5]
    classes = [pair for pair in pairs if pair[0] >= 5]
    if small:
        classes.append((sum(e for e, _ in small) + 1e-9, sum(c for _, c in small)))
    statistic = sum((c - e) ** 2 / e for e, c in classes)
    freedom = max(len(classes) - 1, 1)
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5 + 4, (statistic, freedom)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("sampler", [dl.ransac.Weighted(), dl.ransac.GumbelTopK()], ids=repr)
def test_weighted_draws_are_plackett_luce(sampler, size, row):
    samples = sampler.sample(LOGITS, size, 20_000, generator=seeded())
    assert_distribution(samples[row], probabilities(LOGITS[row].exp().tolist(), size))


def test_the_order_of_draws_is_plackett_luce():
    weights = LOGITS[0].exp().tolist()
    samples = dl.ransac.Weighted().sample(LOGITS, 3, 40_000, generator=seeded())[0].tolist()
    points = [i for i, w in enumerate(weights) if w > 0]
    expected = {o: probability_of_order(weights, o) for o in itertools.permutations(points, 3)}
    counts = dict.fromkeys(expected, 0)
    for row in samples:
        counts[tuple(row)] += 1
    statistic = sum((counts[o] - 40_000 * p) ** 2 / (40_000 * p) for o, p in expected.items() if p > 2e-4)
    freedom = sum(p > 2e-4 for p in expected.values()) - 1
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("sampler", [dl.ransac.Uniform(), dl.ransac.Weighted()], ids=repr)
def test_uniform_draws(sampler, size):
    """Equal logits and absent points; Weighted takes another way for these."""
    logits = torch.zeros(2, 7, dtype=torch.float64)
    logits[1, [0, 3]] = -INF
    samples = sampler.sample(logits, size, 20_000, generator=seeded())
    for row in (0, 1):
        assert_distribution(samples[row], probabilities((logits[row] == 0).double().tolist(), size))
        # every place of a sample is the same
        share = torch.stack([(samples[row] == i).double().mean(0) for i in range(7)])
        expected = (logits[row] == 0).double() / (logits[row] == 0).sum()
        assert (share - expected.unsqueeze(-1)).abs().max() < 4 * 0.5 / 20_000**0.5


def test_uniform_ignores_finite_logits():
    samples = dl.ransac.Uniform().sample(LOGITS, 2, 20_000, generator=seeded())
    assert_distribution(samples[0], probabilities([1, 1, 0, 1, 1, 1], 2))


@each_sampler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_of_a_sample_differ_and_absent_ones_never_come(sampler, dtype):
    logits = 3 * torch.randn(4, 30, dtype=dtype, generator=seeded(1))
    logits[:, ::4] = -INF
    for first in (0, 1000):
        samples = sampler.sample(logits, 7, 2000, first=first, generator=seeded())
        assert samples.shape == (4, 2000, 7)
        assert samples.dtype == torch.int64
        ordered = samples.sort(-1).values
        assert (ordered.diff(dim=-1) > 0).all()
        assert (ordered >= 0).all()
        assert (samples % 4 != 0).all()


@each_sampler
def test_all_points_when_there_are_no_more(sampler):
    samples = sampler.sample(LOGITS[1:], 4, 50, generator=seeded())
    assert (samples.sort(-1).values == torch.tensor([0, 1, 2, 3])).all()


@each_sampler
def test_same_seed_same_samples_and_no_samples(sampler):
    first, second = (sampler.sample(LOGITS, 3, 20, generator=seeded(5)) for _ in range(2))
    assert (first == second).all()
    assert sampler.sample(LOGITS, 3, 0).shape == (2, 0, 3)
    assert sampler.sample(LOGITS[:0], 3, 8).shape == (0, 8, 3)


@pytest.mark.parametrize("gap", [30.0, 200.0, 1000.0, 1e30])
def test_dominating_points_leave_the_others_their_shares(gap):
    """What float64 sums of the weights would lose altogether."""
    rest = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    logits = torch.cat([rest[:2], torch.tensor([gap, 2 * gap], dtype=torch.float64), rest[2:]]).unsqueeze(0)
    samples = plackett_luce(logits, 3, 20_000, seeded())[0]
    assert (samples[:, 0] == 3).all()
    assert (samples[:, 1] == 2).all()
    assert_distribution(samples[:, 2:], {(i,): p for i, p in zip((0, 1, 4), rest.softmax(0).tolist(), strict=True)})


def test_distinct_integers_have_no_bias():
    drawn = distinct(torch.full((60_000,), 4), torch.rand(60_000, 3, dtype=torch.float64, generator=seeded()))
    code = (drawn * torch.tensor([16, 4, 1])).sum(-1)
    counts = torch.bincount(code, minlength=64)
    assert (counts > 0).sum() == 24  # 4 * 3 * 2 sequences
    assert ((counts[counts > 0] - 2500) ** 2 / 2500).sum() < 23 + 4 * 46**0.5


def growth(n, size, draws):
    """T'_n for n = size ... N, from the recurrence of the paper."""
    within = draws * math.prod((size - i) / (n - i) for i in range(size))
    result = [1]
    for m in range(size, n):
        larger = within * (m + 1) / (m + 1 - size)
        result.append(result[-1] + math.ceil(larger - within - 1e-9))
        within = larger
    return result


def test_prosac_follows_its_growth_function():
    size, n, draws = 3, 12, 200
    sampler = dl.ransac.PROSAC(draws)
    quality = torch.randperm(n, generator=seeded(2)).double().unsqueeze(0)
    rank = torch.zeros(n, dtype=torch.int64).scatter(0, quality[0].argsort(descending=True), torch.arange(n))
    samples = rank[sampler.sample(quality, size, 400, generator=seeded())[0]]
    limits = growth(n, size, draws)
    pool = [size + sum(limit < t for limit in limits) for t in range(1, 401)]
    progressive = torch.tensor([p <= n for p in pool])
    assert 200 <= progressive.sum() < 260
    largest = samples.max(-1).values
    assert (largest[progressive] == torch.tensor(pool)[progressive] - 1).all()
    assert samples[0].sort().values.tolist() == [0, 1, 2]
    later = sampler.sample(quality, size, 20_000, first=400, generator=seeded())[0]
    assert_distribution(later, probabilities([1] * n, size))


def test_prosac_goes_on_where_it_was():
    sampler = dl.ransac.PROSAC(300)
    quality = torch.arange(20.0).unsqueeze(0)
    whole = sampler.sample(quality, 4, 200, generator=seeded())[0].min(-1).values
    part = sampler.sample(quality, 4, 100, first=100, generator=seeded(1))[0].min(-1).values
    assert (whole[100:] == part).all()  # the worst point of each is not random


def test_prosac_of_problems_with_different_numbers_of_points():
    sampler, quality = dl.ransac.PROSAC(100), torch.randn(2, 12, generator=seeded())
    quality[1, 7:] = -INF
    alone = quality[1:, :7]
    both = sampler.sample(quality, 3, 150, generator=seeded())[1]
    rank = lambda q, s: q.argsort(descending=True).argsort()[s].max(-1).values  # noqa: E731
    single = sampler.sample(alone, 3, 150, generator=seeded(3))[0]
    drawn = growth(7, 3, 100)[-1]
    assert (rank(quality[1], both)[:drawn] == rank(alone[0], single)[:drawn]).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_log_probability_against_all_orders(size):
    weights = LOGITS[0].exp().tolist()
    expected = probabilities(weights, size)
    samples = torch.tensor(list(expected)).unsqueeze(0)
    found = log_probability(LOGITS[:1], samples)[0]
    assert torch.allclose(found.exp(), torch.tensor(list(expected.values()), dtype=torch.float64), rtol=1e-12, atol=0)
    assert abs(found.exp().sum() - 1) < 1e-12


@pytest.mark.parametrize("size", [6, 8])
def test_probabilities_of_all_sets_sum_to_one(size):
    logits = 2 * torch.randn(2, 11, dtype=torch.float64, generator=seeded())
    sets = torch.tensor(list(itertools.combinations(range(11), size))).expand(2, -1, -1)
    assert torch.allclose(log_probability(logits, sets).exp().sum(-1), torch.ones(2, dtype=torch.float64), rtol=1e-12)


def test_large_samples_have_the_probability_of_their_order():
    logits = torch.randn(1, 14, dtype=torch.float64, generator=seeded())
    sample = dl.ransac.Weighted().sample(logits, 10, 3, generator=seeded())
    expected = [math.log(probability_of_order(logits[0].exp().tolist(), row)) for row in sample[0].tolist()]
    found = dl.ransac.GumbelTopK().log_prob(logits, sample)
    assert torch.allclose(found[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-10)


def test_log_probability_has_no_cancellation():
    """Exact rational arithmetic of e^theta, with points that hold all of the mass but e^-80 and e^-400 of it."""
    from fractions import Fraction

    for gap in (40.0, 80.0, 400.0):
        logits = torch.tensor([[gap, 0.0, 0.5, gap - 1, -0.7, -gap / 2]], dtype=torch.float64)
        weights = [Fraction(math.exp(v)) for v in logits[0].tolist()]
        for size in (2, 3):
            for chosen in itertools.combinations(range(6), size):
                total = Fraction(0)
                for order in itertools.permutations(chosen):
                    p, left = Fraction(1), sum(weights)
                    for i in order:
                        p, left = p * weights[i] / left, left - weights[i]
                    total += p
                expected = math.log(total.numerator) - math.log(total.denominator)
                found = log_probability(logits, torch.tensor([[chosen]])).item()
                assert abs(found - expected) < 1e-12 * max(1, abs(expected)), (gap, chosen)


def test_mass_outside():
    logits = 30 * torch.randn(3, 20, dtype=torch.float64, generator=seeded())
    samples = dl.ransac.Weighted().sample(logits, 5, 40, generator=seeded())
    inside = torch.zeros(3, 40, 20, dtype=torch.bool).scatter(-1, samples, True)
    expected = logits.unsqueeze(1).masked_fill(inside, -INF).logsumexp(-1)
    assert torch.allclose(mass_outside(logits, samples), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 4, 9])
def test_gradients_of_log_probability(size):
    logits = 2 * torch.randn(2, 10, dtype=torch.float64, generator=seeded())
    samples = dl.ransac.Weighted().sample(logits, size, 3, generator=seeded())
    logits.requires_grad_()
    assert gradcheck(lambda x: log_probability(x, samples), logits)
    if size < 9:
        assert gradgradcheck(lambda x: log_probability(x, samples), logits)


def test_gradients_are_finite_and_sum_to_zero():
    """A constant added to all logits changes nothing; absent points get nothing."""
    logits = torch.tensor([[900.0, 0.0, -INF, 1.0, -900.0, 30.0]], dtype=torch.float64, requires_grad=True)
    sampler = dl.ransac.GumbelTopK()
    sets = torch.tensor([list(s) for s in itertools.combinations([0, 1, 3, 4, 5], 3)])
    for chosen in sets:
        value = sampler.log_prob(logits, chosen[None, None])
        gradient = torch.autograd.grad(value.sum(), logits)[0]
        assert gradient.isfinite().all()
        assert abs(gradient.sum()) < 1e-9
        assert gradient[0, 2] == 0
    # all points there are: certain, with zero gradient
    value = sampler.log_prob(logits, torch.tensor([[[4, 5, 0, 3, 1]]]))
    assert abs(value.item()) < 1e-9
    assert torch.autograd.grad(value.sum(), logits)[0].abs().max() < 1e-9


def test_impossible_sets():
    logits = LOGITS.clone().requires_grad_()
    value = log_probability(logits, torch.tensor([[[0, 2]], [[1, 2]]]))
    assert value[0] == -INF
    assert value[1].isfinite()
    gradient = torch.autograd.grad(value[0].sum(), logits)[0]
    assert (gradient == 0).all()


def test_log_probability_only_where_it_is_the_gradient():
    samples = torch.tensor([[[0, 1]], [[0, 1]]])
    assert dl.ransac.GumbelTopK().log_prob(LOGITS, samples).dtype == torch.float64
    assert dl.ransac.GumbelTopK().log_prob(LOGITS.float(), samples).dtype == torch.float32
    for sampler in (dl.ransac.Uniform(), dl.ransac.Weighted(), dl.ransac.PROSAC(), dl.ransac.GumbelTopK("relaxed")):
        assert sampler.log_prob(LOGITS, samples) is None


def test_conditional_keys_put_the_drawn_points_first():
    logits = LOGITS.clone().requires_grad_()
    samples = dl.ransac.Weighted().sample(LOGITS, 3, 500, generator=seeded())
    keys = conditional_keys(logits, samples, seeded(1))
    order = keys.detach().topk(3, -1).indices
    assert (order == samples).all()
    keys.masked_fill(keys.isinf(), 0).sum().backward()
    assert (logits.grad == 500 * LOGITS.isfinite()).all()


def test_keys_are_gumbel_variables():
    """Draws and then keys given the draws: together like logits + Gumbel noise, point by point."""
    logits = torch.tensor([[0.3, -1.2, 2.0, 0.0]], dtype=torch.float64)
    samples = dl.ransac.Weighted().sample(logits, 2, 40_000, generator=seeded())
    noise = (conditional_keys(logits, samples, seeded(1)) - logits.unsqueeze(1))[0]
    level = torch.tensor([-1.0, 0.0, 1.0, 2.0, 4.0], dtype=torch.float64)
    expected = torch.exp(-torch.exp(-level))
    found = (noise.unsqueeze(-1) < level).double().mean(0)
    assert (found - expected).abs().max() < 4 * 0.5 / 40_000**0.5
    correlation = torch.corrcoef(noise.T) - torch.eye(4, dtype=torch.float64)
    assert correlation.abs().max() < 4 / 40_000**0.5


@pytest.mark.parametrize("gradient", ["score_function", "straight_through", "relaxed"])
def test_gathered_points_are_the_points(gradient):
    points = torch.randn(2, 6, 3, dtype=torch.float64, generator=seeded(), requires_grad=True)
    logits = LOGITS.clone().requires_grad_()
    sampler = dl.ransac.GumbelTopK(gradient)
    samples = sampler.sample(logits, 2, 5, generator=seeded())
    gathered = sampler.gather(points, logits, samples, generator=seeded(1))
    expected = points[torch.arange(2)[:, None, None], samples]
    assert torch.allclose(gathered, expected, rtol=1e-14)
    found = torch.autograd.grad(gathered.square().sum(), (points, logits), allow_unused=True)
    assert torch.allclose(found[0], torch.autograd.grad(expected.square().sum(), points)[0])
    if gradient == "score_function":
        assert found[1] is None
    else:
        assert found[1].isfinite().all()
        assert (found[1] != 0).any()
        assert (found[1][LOGITS.isneginf()] == 0).all()


def test_straight_through_is_the_published_surrogate():
    """k-hot - stop(soft) + soft, times all points; the drawn rows taken."""
    logits = LOGITS[:1].clone().requires_grad_()
    points = torch.randn(1, 6, 3, dtype=torch.float64, generator=seeded())
    sampler = dl.ransac.GumbelTopK("straight_through", temperature=0.7)
    samples = sampler.sample(LOGITS[:1], 3, 8, generator=seeded())
    weight = torch.randn(1, 8, 3, 3, dtype=torch.float64, generator=seeded(2))
    noise = (conditional_keys(LOGITS[:1], samples, seeded(1)) - LOGITS[:1].unsqueeze(1)).nan_to_num(nan=0)
    soft = ((logits.unsqueeze(1) + noise) / 0.7).softmax(-1)
    hard = torch.zeros_like(soft).scatter(-1, samples, 1.0)
    scaled = points.unsqueeze(1) * (hard - soft.detach() + soft).unsqueeze(-1)
    expected = torch.autograd.grad(
        (scaled.gather(2, samples.unsqueeze(-1).expand(weight.shape)) * weight).sum(), logits
    )
    found = torch.autograd.grad((sampler.gather(points, logits, samples, generator=seeded(1)) * weight).sum(), logits)
    assert torch.allclose(found[0], expected[0], rtol=1e-10)


def test_only_the_relaxed_gradient_does_not_depend_on_the_origin():
    logits = LOGITS[:1].clone().requires_grad_()
    points = torch.randn(1, 6, 3, dtype=torch.float64, generator=seeded())
    found = {}
    for gradient in ("relaxed", "straight_through"):
        sampler = dl.ransac.GumbelTopK(gradient)
        samples = sampler.sample(LOGITS[:1], 3, 8, generator=seeded())
        for shift in (0.0, 5.0):
            drawn = sampler.gather(points + shift, logits, samples, generator=seeded(1))
            loss = (drawn[..., 0, :] - drawn[..., 1, :]).square().sum()  # the same wherever the origin is
            found[gradient, shift] = torch.autograd.grad(loss, logits)[0]
    assert torch.allclose(found["relaxed", 0.0], found["relaxed", 5.0], rtol=1e-9)
    assert not torch.allclose(found["straight_through", 0.0], found["straight_through", 5.0], rtol=0.1)


def test_relaxed_gradient_of_one_point_is_that_of_gumbel_softmax():
    """Size 1: the derivative of softmax(keys) @ x, by finite differences of the mean over the same noise."""
    logits = torch.tensor([[0.3, -1.2, 2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    points = torch.randn(1, 4, 2, dtype=torch.float64, generator=seeded())
    sampler = dl.ransac.GumbelTopK("relaxed", temperature=0.5)
    samples = sampler.sample(logits, 1, 4, generator=seeded())
    noise = (conditional_keys(logits, samples, seeded(1)) - logits.unsqueeze(1)).detach()
    soft = lambda x: (((x.unsqueeze(1) + noise) / 0.5).softmax(-1) @ points).sum()  # noqa: E731
    expected = torch.autograd.grad(soft(logits), logits)[0]
    drawn = sampler.gather(points, logits, samples, generator=seeded(1))
    assert torch.allclose(torch.autograd.grad(drawn.sum(), logits)[0], expected, rtol=1e-10)


def all_inlier_share(weights, inliers, size):
    return sum(p for chosen, p in probabilities(weights, size).items() if all(inliers[i] for i in chosen))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_draws_needed(size):
    inliers = torch.tensor([[True, False, True, True, False, True]]).expand(2, -1)
    logits = LOGITS[:1].expand(2, -1).clone()
    logits[1, 0] = 15.0  # one point that holds nearly all of the mass does not make samples of inliers
    uniform = dl.ransac.Uniform().needed(logits, inliers, size, 0.99)
    expected = all_inlier_share([1, 1, 0, 1, 1, 1], inliers[0].tolist(), size)
    assert uniform[0].item() == pytest.approx(math.log(0.01) / math.log(1 - expected))
    weighted = dl.ransac.Weighted().needed(logits, inliers, size, 0.99)
    for row in (0, 1):
        expected = all_inlier_share(logits[row].exp().tolist(), inliers[row].tolist(), size)
        exact = math.log(0.01) / math.log(1 - min(expected, 1 - 1e-15))
        assert exact * (1 - 1e-6) <= weighted[row] <= 2 * exact


@each_sampler
def test_draws_needed_of_few_and_of_all_inliers(sampler):
    inliers = torch.zeros(2, 6, dtype=torch.bool)
    inliers[:, :2] = True
    assert (sampler.needed(LOGITS, inliers, 3, 0.99) == INF).all()
    assert (sampler.needed(LOGITS, ~inliers | inliers, 3, 0.99) <= 1).all()


def test_prosac_ends_when_the_best_points_say_so():
    sampler, n = dl.ransac.PROSAC(), 200
    quality = torch.linspace(1, 0, n).unsqueeze(0)
    inliers = (torch.arange(n) < 30).unsqueeze(0)
    good = sampler.needed(quality, inliers, 5, 0.999)
    poor = sampler.needed(quality.flip(-1), inliers, 5, 0.999)
    uniform = dl.ransac.Uniform().needed(quality, inliers, 5, 0.999)
    assert good < 10
    assert poor.item() == pytest.approx(uniform.item())
    # that the few best are inliers of a model made of them says nothing
    few = sampler.needed(quality, (torch.arange(n) < 7).unsqueeze(0), 5, 0.999)
    assert few > 1e5


def test_prosac_finds_the_model_sooner():
    generator = seeded(3)
    points = torch.rand(1, 500, 2, dtype=torch.float64, generator=generator)
    points[:, :50, 1] = 0.5 * points[:, :50, 0] + 0.2
    quality = torch.rand(1, 500, dtype=torch.float64, generator=generator)
    quality[:, :50] += 0.5
    results = [
        dl.ransac.RANSAC(dl.ransac.Line2D(), threshold=0.001, sampler=sampler).eval()(
            points, quality, generator=generator
        )
        for sampler in (dl.ransac.PROSAC(), dl.ransac.Uniform())
    ]
    for result in results:
        assert result.inliers[:, :50].all()
    assert 4 * results[0].iterations <= results[1].iterations


@each_sampler
@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.tensor([[0.0, NAN, 1.0]]), "must be finite or -inf, got nan"),
        (torch.tensor([[0.0, INF, 1.0]]), "must be finite or -inf, got inf"),
        (torch.full((1, 4), -INF), "at least 2 finite elements a problem .* got 0"),
        (torch.tensor([[0.0, 0.0, 0.0], [0.0, -INF, -INF]]), "at least 2 finite elements a problem .* got 1"),
        (torch.zeros(2, 1), "at least 2 finite elements"),
        (torch.zeros(5), r"must have the shape \(problems, points\), got \(5,\)"),
        (torch.zeros(1, 2, 5), r"must have the shape \(problems, points\)"),
    ],
)
def test_bad_logits(sampler, logits, message):
    with pytest.raises(ValueError, match=message):
        sampler.sample(logits, 2, 3)


def test_bad_types_and_settings():
    with pytest.raises(TypeError, match="floating-point"):
        dl.ransac.Uniform().sample(torch.zeros(1, 4, dtype=torch.int64), 2, 3)
    with pytest.raises(TypeError, match=r"torch\.Tensor"):
        dl.ransac.Weighted().sample([[0.0, 1.0]], 1, 3)
    with pytest.raises(ValueError, match="'size' must be at least 1"):
        dl.ransac.Uniform().sample(torch.zeros(1, 4), 0, 3)
    with pytest.raises(ValueError, match="'gradient' must be one of"):
        dl.ransac.GumbelTopK("reinforce")
    with pytest.raises(ValueError, match="'temperature'"):
        dl.ransac.GumbelTopK(temperature=0)
    with pytest.raises(ValueError, match="'draws'"):
        dl.ransac.PROSAC(0)


def test_representations():
    assert repr(dl.ransac.PROSAC(5)) == "PROSAC(draws=5)"
    assert repr(dl.ransac.Uniform()) == "Uniform()"
    assert repr(dl.ransac.GumbelTopK("relaxed", temperature=0.5)) == "GumbelTopK(gradient='relaxed', temperature=0.5)"
