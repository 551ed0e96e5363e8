"""What is particular to one k-of-n method: its published formula, its limits, its own options."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import difflayers as dl
from difflayers import subsets
from difflayers.subsets import perturbed
from difflayers.subsets.threshold import threshold
from tests.tolerances import assert_identical, assert_near

INF = math.inf


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class TestNetwork:
    @pytest.mark.parametrize("options", [{}, {"network": "bitonic", "swap": "logistic"}, {"network": "odd_even"}])
    def test_is_topk_of_the_sorting_family(self, options):
        x = random(4, 9)
        for k in (1, 4, 8):
            expected = dl.topk(x, k, steepness=1 / 0.3, **options).membership
            assert_near(subsets.network_topk(x, k, 0.3, **options), expected)
        masked = x.index_fill(1, torch.tensor([0, 5]), -INF)
        expected = dl.topk(x, 3, steepness=1 / 0.3, mask=masked > -INF, **options).membership
        assert_near(subsets.network_topk(masked, 3, 0.3, **options), expected)

    def test_bad_input(self):
        for call in (lambda **s: subsets.network_topk(torch.ones(3), 0, **s), lambda **s: subsets.NetworkTopK(1, **s)):
            with pytest.raises(ValueError, match=r"subsets\.\w+: argument 'network' must .*got 'quick'"):
                call(network="quick")
            with pytest.raises(ValueError, match=r"subsets\.\w+: argument 'swap' must .*got 'step'"):
                call(swap="step")
        with pytest.raises(ValueError, match=r"network_topk: argument 'network' must have as many wires"):
            subsets.network_topk(torch.ones(3), 1, network=dl.Network([(0, 1)]))


class TestGumbel:
    def test_published_formula(self):
        x = random(5, 7)
        for temperature in (0.1, 0.5, 2.0):
            noise = dl._random.gumbel((5, 7), dtype=torch.float64, device=x.device, generator=seeded())
            keys, expected = x + noise, torch.zeros_like(x)
            one_hot = torch.zeros_like(x)
            for _ in range(3):
                keys = keys + torch.log((1 - one_hot).clamp(min=1e-300))
                one_hot = (keys / temperature).softmax(-1)
                expected = expected + one_hot
            actual = subsets.gumbel_topk(x, 3, temperature, generator=seeded())
            # 1 - a of the formula loses digits where a is nearly 1
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)

    def test_hard_samples_without_replacement(self):
        logits, count = torch.tensor([0.0, 1.0, -1.0, 0.5], dtype=torch.float64), 40_000
        z = subsets.gumbel_topk(logits.expand(count, 4), 2, 0.5, hard=True, generator=seeded())
        p = logits.softmax(0)
        pairs = p[:, None] * p / (1 - p[:, None])  # first i, then j
        pairs.fill_diagonal_(0)
        expected = pairs.sum(0) + pairs.sum(1)
        sigma = (expected * (1 - expected) / count).sqrt()
        assert ((z.mean(0) - expected).abs() < 4 * sigma).all()

    def test_no_element_is_chosen_twice_at_low_temperature(self):
        """A floor under log(1 - a), as in the published code, would choose the largest one again."""
        y = subsets.gumbel_topk(torch.tensor([1e4, 0.0, -30.0, -1e4]), 3, 0.1)
        torch.testing.assert_close(y, torch.tensor([1.0, 1, 1, 0]), rtol=0, atol=1e-3)


class TestPerturbed:
    def test_two_elements_in_closed_form(self):
        """P(x_0 + s Z_0 > x_1 + s Z_1) with its derivatives."""
        x = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
        s = torch.tensor([0.8], dtype=torch.float64, requires_grad=True)
        probability = torch.special.ndtr((x[0] - x[1]) / (s[0] * math.sqrt(2)))
        exact = torch.autograd.grad(probability, (x, s), create_graph=True)
        (exact_second,) = torch.autograd.grad(exact[0][0], x)
        samples = 400_000
        y = subsets.perturbed_topk(x, 1, s, samples=samples, generator=seeded())
        assert abs(y[0] - probability) < 4 * 0.5 / math.sqrt(samples)
        first = torch.autograd.grad(y[0], (x, s), create_graph=True)
        (second,) = torch.autograd.grad(first[0][0], x)
        for actual, expected in ((first[0], exact[0]), (first[1], exact[1]), (second, exact_second)):
            torch.testing.assert_close(actual, expected, rtol=0, atol=0.02)

    def test_gradient_is_unbiased_and_the_control_variate_helps(self):
        x, weights, sigma = torch.tensor([0.5, 0.0, -0.3, 0.2]).double(), random(4) + 3, 0.7
        rows = x.expand(20_000, 4).clone().requires_grad_()
        y = subsets.perturbed_topk(rows, 2, sigma, samples=6, generator=seeded())
        (slopes,) = torch.autograd.grad((y * weights).sum(), rows)
        # the same without the control variate, and with far more samples
        noise = torch.randn(400_000, 4, dtype=torch.float64, generator=seeded(1))
        chosen = torch.zeros_like(noise).scatter(1, (x + sigma * noise).topk(2, dim=1).indices, 1.0)
        plain = (chosen @ weights)[:, None] * noise / sigma
        error = (slopes.var(0) / len(slopes) + plain.var(0) / len(plain)).sqrt()
        assert ((slopes.mean(0) - plain.mean(0)).abs() < 4 * error).all()
        assert (slopes.var(0) < 0.5 * plain.var(0) / 6).all()

    def test_chunks(self, monkeypatch):
        x = random(3, 5)
        monkeypatch.setattr(perturbed, "CHUNK", 40)  # 2 samples at a time
        leaf = x.clone().requires_grad_()
        y = subsets.perturbed_topk(leaf, 2, samples=2001, generator=seeded())
        (slope,) = torch.autograd.grad(y.square().sum(), leaf)
        monkeypatch.undo()
        leaf = x.clone().requires_grad_()
        whole = subsets.perturbed_topk(leaf, 2, samples=20_000, generator=seeded(1))
        (expected,) = torch.autograd.grad(whole.square().sum(), leaf)
        torch.testing.assert_close(y, whole, rtol=0, atol=0.06)
        torch.testing.assert_close(slope, expected, rtol=0, atol=0.3)
        assert_near(y.sum(1), torch.full((3,), 2.0).double())

    def test_small_noise_on_large_logits_in_float32(self):
        """The noise in the gradient is the noise, not (x + s z) - x."""
        x = torch.tensor([1e4, 1e4, -1e4]).requires_grad_()
        y = subsets.perturbed_topk(x, 1, 1e-5, generator=seeded())
        (slope,) = torch.autograd.grad(y[0], x)
        assert slope.isfinite().all()
        assert slope.abs().max() > 100

    def test_bad_input(self):
        for call in (lambda s: subsets.perturbed_topk(torch.ones(3), 1, samples=s),
                     lambda s: subsets.PerturbedTopK(1, samples=s)):  # fmt: skip
            with pytest.raises(ValueError, match="argument 'samples' must be at least 2, got 1"):
                call(1)
            with pytest.raises(TypeError, match="argument 'samples' must be an integer, got float"):
                call(2.0)


def sinkhorn(x, k, epsilon, iterations=1000):
    """The plan's second column times n by Sinkhorn's iterations, in log space."""
    n = len(x)
    cost = (x[:, None] - torch.tensor([0.0, 1.0]).double()) ** 2
    rows = torch.full((n,), -math.log(n), dtype=torch.float64)
    columns = torch.tensor([(n - k) / n, k / n], dtype=torch.float64).log()
    v = torch.zeros(2, dtype=torch.float64)
    for _ in range(iterations):
        u = rows - (v - cost / epsilon).logsumexp(1)
        v = columns - (u[:, None] - cost / epsilon).logsumexp(0)
    return n * (u[:, None] + v - cost / epsilon).exp()[:, 1]


class TestOptimalTransport:
    @pytest.mark.parametrize("epsilon", [0.3, 1.0, 5.0])
    def test_sinkhorn(self, epsilon):
        x = random(7).requires_grad_()
        for k in (1, 3, 6):
            y, expected = subsets.optimal_transport_topk(x, k, epsilon), sinkhorn(x, k, epsilon)
            torch.testing.assert_close(y, expected, rtol=0, atol=1e-9)
            weights = random(7)
            (slope,) = torch.autograd.grad((y * weights).sum(), x)
            (wanted,) = torch.autograd.grad((expected * weights).sum(), x)
            torch.testing.assert_close(slope, wanted, rtol=0, atol=1e-7)

    def test_third_derivative(self):
        x = random(4).requires_grad_()
        f = lambda t: subsets.optimal_transport_topk(t, 2, 1.5)  # noqa: E731
        first = lambda t: torch.autograd.grad(f(t).sin().sum(), t, create_graph=True)[0]  # noqa: E731
        assert gradgradcheck(first, x)

    def test_threshold_converges(self):
        """Also without an early end, wherever the scores lie and however wide the gap is."""
        generator = seeded()
        for n in (2, 3, 10, 1000):
            for scale in (1e-3, 1.0, 30.0, 1e4):
                theta = scale * torch.randn(4, n, dtype=torch.float64, generator=generator)
                theta[1, : n // 2] += 80
                theta[2] = theta[2].round()
                theta[3, 1:] = theta[3, 1] + torch.where(torch.arange(1, n) == 1, 10.0, 0.0)
                for k in {1, n // 2, n - 1}:
                    m = torch.sigmoid(theta - threshold(theta, k))
                    torch.testing.assert_close(m.sum(1), torch.full((4,), float(k)).double(), rtol=1e-11, atol=1e-11)
                    traced = torch.func.vmap(lambda t: threshold(t[None], k)[0])(theta)  # noqa: B023
                    m = torch.sigmoid(theta - traced)
                    torch.testing.assert_close(m.sum(1), torch.full((4,), float(k)).double(), rtol=1e-9, atol=1e-9)


def laplace(x, k, alpha):
    """By bisection."""
    f = lambda b: torch.where(x > b, 1 - (-(x - b) / alpha).exp() / 2, ((x - b) / alpha).exp() / 2)  # noqa: E731
    low, high = x.min() - 60 * alpha, x.max() + 60 * alpha
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle).sum() > k else (low, middle)
    return f((low + high) / 2)


class TestLapSum:
    @pytest.mark.parametrize("k", [0.01, 0.5, 1, 2.3, 4, 6.99])
    def test_bisection(self, k):
        for x in (random(7), 3 * random(7), torch.tensor([0.0, 0, 1, 1, 1, -2, 5]).double(), torch.zeros(7).double()):
            for alpha in (0.05, 1.0, 8.0):
                y = subsets.lapsum_topk(x, k, alpha)
                torch.testing.assert_close(y, laplace(x, k, alpha), rtol=0, atol=1e-12)
                assert abs(y.sum() - k) < 1e-12

    def test_many_elements_in_float32(self):
        x = torch.randn(3, 10_000)
        for k in (1, 77.5, 5000, 9999):
            for alpha in (1e-4, 0.1, 10.0):
                total = subsets.lapsum_topk(x, k, alpha).double().sum(1)
                torch.testing.assert_close(total, torch.full((3,), float(k)).double(), rtol=1e-6, atol=1e-6)

    def test_k_is_learnable(self):
        x = random(3, 5).requires_grad_()
        k = torch.tensor([[0.7], [2.0], [3.6]], dtype=torch.float64).requires_grad_()
        alpha = torch.tensor(0.8, dtype=torch.float64).requires_grad_()
        assert gradcheck(subsets.lapsum_topk, (x, k, alpha))
        assert gradgradcheck(subsets.lapsum_topk, (x, k, alpha))
        y = subsets.lapsum_topk(x, k, alpha)
        assert_near(y.sum(1, keepdim=True), k)
        (slope,) = torch.autograd.grad(y.sum(), k)
        assert_near(slope, torch.ones(3, 1).double(), order=1)
        assert_identical(subsets.lapsum_topk(x.T, k.T, alpha, dim=0), y.T)

    def test_k_at_its_ends_keeps_a_gradient(self):
        k = torch.tensor([[0.0], [4.0]], dtype=torch.float64).requires_grad_()
        y = subsets.lapsum_topk(torch.tensor([0.0, 1.0, 2.0, 0.5]).double().expand(2, 4), k)
        torch.testing.assert_close(y, torch.tensor([[0.0], [1.0]]).double().expand(2, 4), rtol=0, atol=1e-11)
        (slope,) = torch.autograd.grad(y.sum(), k)
        torch.testing.assert_close(slope, torch.ones(2, 1).double(), rtol=0, atol=1e-3)

    def test_hard_with_a_fraction(self):
        x = torch.tensor([3.0, -1.0, 2.0, 5.0])
        assert_identical(subsets.lapsum_topk(x, 2.25, hard=True), torch.tensor([1.0, 0.0, 0.25, 1.0]))

    def test_score_at_the_threshold(self):
        """The density is 1/2 there, not 0."""
        x = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda t: subsets.lapsum_topk(t, 1.5), x)
        density = torch.tensor([math.exp(-1) / 2, 0.5, math.exp(-1) / 2], dtype=torch.float64)
        assert_near(jacobian, density.diag() - density[:, None] * density / density.sum(), order=1)

    def test_module(self):
        x = random(2, 4)
        learned = subsets.LapSumTopK(torch.nn.Parameter(torch.tensor(1.5)))
        learned(x)[0, 0].backward()
        assert [name for name, _ in learned.named_parameters()] == ["k"]
        assert learned.k.grad.isfinite()
        kept = subsets.LapSumTopK(torch.tensor(1.5))
        assert list(kept.state_dict()) == ["k"]
        assert "tensor of shape ()" in repr(kept)
        assert_near(kept(x), subsets.LapSumTopK(1.5)(x))

    def test_bad_input(self):
        x = torch.tensor([[1.0, 2.0, 3.0], [1.0, -INF, -INF]])
        for error, shown, k in (
            (ValueError, r"be a finite number in \[0, 3\], got 4", 4),
            (ValueError, r"in \[0, 3\].*, got -1", -1),
            (ValueError, r"in \[0, 3\].*, got nan", math.nan),
            (TypeError, r"be a number, got str", "1"),
            (TypeError, r"floating-point dtype, got int64", torch.tensor(1)),
            (ValueError, r"broadcastable.*keepdim form", torch.ones(3)),
            (ValueError, r"at most the number of elements.*got 2 where 1 are present", 2.0),
            (ValueError, r"at least 0 .*got -1 where 3", torch.tensor([[-1.0], [1.0]])),
            (ValueError, r"at least 0 .*got nan where 3", torch.tensor([[math.nan], [1.0]])),
        ):
            with pytest.raises(error, match=rf"^difflayers\.subsets\.lapsum_topk: argument 'k' must .*{shown}"):
                subsets.lapsum_topk(x, k)
        y = torch.func.vmap(lambda t, k: subsets.lapsum_topk(t, k))(x, torch.tensor([[-1.0], [1.0]]))
        assert y[0].isnan().all()
        assert_near(y[1], torch.tensor([1.0, 0.0, 0.0]))


def naive_softsort(x, temperature):
    return torch.stack([(-(value - x).abs() / temperature).softmax(0) for value in x.sort().values])


def naive_neuralsort(x, temperature):
    n = len(x)
    rows = [
        ((n + 1 - 2 * i) * x - torch.stack([(value - x).abs().sum() for value in x])) / temperature
        for i in range(1, n + 1)
    ]
    return torch.stack(rows).softmax(1).flip(0)  # as published: the largest first


class TestMatrices:
    each = pytest.mark.parametrize(
        ("function", "naive", "topk"),
        [(subsets.softsort, naive_softsort, subsets.softsort_topk),
         (subsets.neuralsort, naive_neuralsort, subsets.neuralsort_topk)],
        ids=["softsort", "neuralsort"],
    )  # fmt: skip

    @each
    def test_formula(self, function, naive, topk):
        x = random(3, 6)
        for temperature in (0.2, 1.0, 4.0):
            p = function(x, temperature)
            assert_near(p, torch.stack([naive(row, temperature) for row in x]))
            assert_near(p.sum(-1), torch.ones(3, 6).double())
            assert_identical(function(x, temperature, descending=True), p.flip(1))
            for k in (1, 4):
                assert_near(topk(x, k, temperature), p[:, 6 - k :].sum(1))
        assert_near(function(x.T, dim=0), function(x))

    @each
    def test_becomes_the_permutation(self, function, naive, topk):
        x = random(4, 6)
        expected = torch.nn.functional.one_hot(x.argsort(-1), 6).double()
        torch.testing.assert_close(function(x, 1e-4), expected, rtol=0, atol=1e-6)

    @each
    def test_masked(self, function, naive, topk):
        x = random(2, 6)
        masked = x.index_fill(1, torch.tensor([1, 4]), -INF)
        p = function(masked)
        assert (p[:, :, [1, 4]] == 0).all()
        assert (p[:, :2] == 0).all()
        assert_near(p[:, 2:][:, :, [0, 2, 3, 5]], function(x[:, [0, 2, 3, 5]]))

    @each
    def test_shapes_and_gradients(self, function, naive, topk):
        assert function(random(2, 3, 4), dim=1).shape == (2, 4, 3, 3)
        assert function(random(3, 0)).shape == (3, 0, 0)
        assert_identical(function(random(2, 1)), torch.ones(2, 1, 1).double())
        x = random(2, 4).requires_grad_()
        assert gradcheck(function, x)
        assert gradgradcheck(function, x)
        assert function(x.half()).dtype == torch.float16

    @each
    def test_bad_input(self, function, naive, topk):
        name = function.__name__
        for error, argument, call in (
            (TypeError, "x", lambda: function([1.0])),
            (ValueError, "x", lambda: function(torch.tensor([math.nan]))),
            (ValueError, "temperature", lambda: function(torch.ones(2), 0.0)),
            (TypeError, "descending", lambda: function(torch.ones(2), descending=1)),
            (ValueError, "dim", lambda: function(torch.ones(2), dim=1)),
        ):
            with pytest.raises(error, match=rf"^difflayers\.subsets\.{name}: argument '{argument}' must"):
                call()
