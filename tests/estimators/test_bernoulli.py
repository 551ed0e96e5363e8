"""Yes-or-no estimators: their laws, their gradients in closed form, transforms, dtypes, bad input."""

import inspect
import math

import pytest
import torch
from torch.func import grad, jacrev, vmap

import difflayers as dl
from difflayers import _random, estimators
from tests.estimators.cases import Noise
from tests.tolerances import assert_identical, assert_near

stats = pytest.importorskip("scipy.stats")

FUNCTIONS = {
    "relaxed_bernoulli": estimators.relaxed_bernoulli,
    "relaxed_bernoulli hard": lambda *a, **s: estimators.relaxed_bernoulli(*a, hard=True, **s),
    "straight_through_bernoulli": estimators.straight_through_bernoulli,
    "reinmax_bernoulli": estimators.reinmax_bernoulli,
    "hard_concrete": estimators.hard_concrete,
}
MODULES = {
    "relaxed_bernoulli": estimators.RelaxedBernoulli,
    "relaxed_bernoulli hard": lambda *a, **s: estimators.RelaxedBernoulli(*a, hard=True, **s),
    "straight_through_bernoulli": estimators.StraightThroughBernoulli,
    "reinmax_bernoulli": estimators.ReinMaxBernoulli,
    "hard_concrete": estimators.HardConcrete,
}
DISCRETE = ("relaxed_bernoulli hard", "straight_through_bernoulli", "reinmax_bernoulli")
HALF = (torch.float16, torch.bfloat16)
INF, NAN = math.inf, math.nan
each = pytest.mark.parametrize("name", FUNCTIONS)
each_discrete = pytest.mark.parametrize("name", DISCRETE)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=seeded(1))


@pytest.fixture
def noise(monkeypatch):
    """The same noise at every call and under every transform."""
    Noise().install(monkeypatch)


def slope(f, x, upstream):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(f(leaf), leaf, upstream)[0]


def logistic(shape):
    """As `_random.logistic` makes it of the fixed bits, by way of the uniform number."""
    bits = Noise().bits(shape).long() & (2**31 - 1)
    half = ((bits >> 1).double() + 0.5) / 2**31
    u = torch.where((bits & 1) == 1, 1 - half, half)
    return torch.log(u) - torch.log(1 - u)


class TestLaw:
    @each_discrete
    def test_probability_is_the_sigmoid(self, name):
        x = torch.tensor([-3.0, -0.5, 0.0, 1.0, 4.0])
        count = 40_000
        for temperature in (0.3, 2.0):
            y = FUNCTIONS[name](x.expand(count, 5), temperature, generator=seeded(4))
            assert ((y == 0) | (y == 1)).all()
            p = torch.sigmoid(x)
            assert ((y.mean(0) - p).abs() < 4.5 * (p * (1 - p) / count).sqrt()).all()
            assert (torch.corrcoef(y.T) - torch.eye(5)).abs().max() < 4.5 / math.sqrt(count)

    @pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
    def test_relaxed_is_binary_concrete(self, temperature):
        x = torch.full((20_000,), 0.7, dtype=torch.float64)
        y = estimators.relaxed_bernoulli(x, temperature, generator=seeded(2))
        assert stats.kstest((temperature * torch.logit(y) - 0.7).numpy(), stats.logistic.cdf).pvalue > 1e-4
        hard = estimators.relaxed_bernoulli(x, temperature, hard=True, generator=seeded(2))
        assert_identical(hard, (y > 0.5).double())

    def test_hard_concrete(self):
        x = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
        count = 40_000
        for temperature, lower, upper in ((2 / 3, -0.1, 1.1), (0.3, -0.5, 1.2)):
            options = {"lower": lower, "upper": upper}
            z = estimators.hard_concrete(x.expand(count, 3), temperature, **options, generator=seeded(3))
            assert ((z >= 0) & (z <= 1)).all()
            p = estimators.hard_concrete_open_probability(x, temperature, **options)
            # independently: P(z > 0) = P(s > -lower / (upper - lower)) by the distribution function of the logistic
            edge = -lower / (upper - lower)
            at = temperature * (math.log(edge) - math.log(1 - edge)) - x
            assert_near(p, torch.tensor(stats.logistic.sf(at.numpy())))
            assert (((z > 0).double().mean(0) - p).abs() < 4.5 * (p * (1 - p) / count).sqrt()).all()
            q = 1 - estimators.hard_concrete_open_probability(-x, temperature, lower=1 - upper, upper=1 - lower)
            assert (((z == 1).double().mean(0) - q).abs() < 4.5 * (q * (1 - q) / count).sqrt()).all()
            inner = z[:, 1][(z[:, 1] > 0) & (z[:, 1] < 1)]
            assert len(inner.unique()) > 0.99 * len(inner) > 100

    def test_gate_is_the_published_one(self):
        x = torch.tensor([-4.0, -1.0, 0.0, 1.0, 4.0], dtype=torch.float64)
        expected = (torch.sigmoid(x) * 1.2 - 0.1).clamp(0, 1)
        assert_near(estimators.hard_concrete_gate(x), expected)
        expected = (torch.sigmoid(x) * 1.7 - 0.5).clamp(0, 1)
        assert_near(estimators.hard_concrete_gate(x, lower=-0.5, upper=1.2), expected)

    @each
    def test_infinite_logits_are_certain(self, name):
        x = torch.tensor([INF, -INF] * 50, requires_grad=True)
        warmth = torch.tensor(0.7, requires_grad="reinmax" not in name)
        y = FUNCTIONS[name](x, warmth)
        assert_identical(y.detach(), torch.tensor([1.0, 0.0] * 50))
        (y * torch.arange(100.0)).sum().backward()
        assert_identical(x.grad, torch.zeros(100))
        assert warmth.grad is None or warmth.grad == 0
        assert_identical(estimators.hard_concrete_gate(x.detach()), y.detach())
        assert_identical(estimators.hard_concrete_open_probability(x.detach()), y.detach())

    @each_discrete
    def test_infinite_logits_at_the_extreme_random_numbers(self, name, monkeypatch):
        for u in (0.0, 1 - 2.0**-53):
            monkeypatch.setattr(_random, "uniform", lambda shape, u=u, **s: torch.full(shape, u, dtype=torch.float64))
            y = FUNCTIONS[name](torch.tensor([INF, -INF]))
            assert_identical(y, torch.tensor([1.0, 0.0]))

    @each
    def test_shapes_and_strides(self, name):
        f = FUNCTIONS[name]
        x = random(4, 6)
        expected = f(x, generator=seeded())
        assert_identical(f(x.t().contiguous().t(), generator=seeded()), expected)
        assert_identical(f(torch.stack([x, x], -1)[..., 0], generator=seeded()), expected)
        assert_identical(f(x.reshape(2, 3, 4), generator=seeded()).reshape(4, 6), expected)
        for shape in ((), (0,), (3, 0), (1,)):
            leaf = torch.zeros(shape, requires_grad=True)
            y = f(leaf)
            assert y.shape == shape
            y.sum().backward()
            assert leaf.grad.shape == shape
        torch.manual_seed(1)
        first, second = f(torch.zeros(200)), f(torch.zeros(200))
        assert (first != second).any()
        torch.manual_seed(1)
        assert_identical(f(torch.zeros(200)), first)


@pytest.mark.usefixtures("noise")
class TestGradients:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
    def test_reinmax_is_that_of_two_classes(self, temperature, monkeypatch):
        """Both outcomes of every logit, in closed form and against the categorical estimator."""
        x, g = torch.linspace(-4, 4, 9, dtype=torch.float64), random(9)
        p = torch.sigmoid(x)
        rows = torch.stack([x, torch.zeros_like(x)], 1).requires_grad_()
        for z in (0.0, 1.0):
            u = (p / 2 if z else (1 + p) / 2).double()
            monkeypatch.setattr(_random, "uniform", lambda *a, u=u, **s: u)
            a = (torch.sigmoid(x / temperature) + z) / 2
            expected = (2 * a * (1 - a) - p * (1 - p) / 2) * g
            y = estimators.reinmax_bernoulli(x, temperature)
            assert (y == z).all()
            assert_near(slope(lambda t: estimators.reinmax_bernoulli(t, temperature), x, g), expected, order=1)
            monkeypatch.setattr(_random, "uniform", lambda *a, u=u, **s: u[:, None])
            pair = estimators.reinmax(rows, temperature)
            assert (pair[:, 0] == z).all()
            assert_near(torch.autograd.grad(pair[:, 0], rows, g)[0][:, 0], expected, order=1)
            pair = estimators.straight_through(rows, temperature)
            monkeypatch.setattr(_random, "uniform", lambda *a, u=u, **s: u)
            expected = torch.autograd.grad(pair[:, 0], rows, g)[0][:, 0]
            actual = slope(lambda t: estimators.straight_through_bernoulli(t, temperature), x, g)
            assert_near(actual, expected, order=1)

    def test_values_and_gradients_are_the_surrogates(self):
        x, g = random(4, 5), random(4, 5).cos()
        warmth = torch.linspace(0.4, 2, 4).double()[:, None]
        surrogates = {
            "relaxed_bernoulli": lambda t, w: torch.sigmoid((t + logistic(t.shape)) / w),
            "relaxed_bernoulli hard": lambda t, w: torch.sigmoid((t + logistic(t.shape)) / w),
            "straight_through_bernoulli": lambda t, w: torch.sigmoid(t / w),
            "hard_concrete": lambda t, w: (torch.sigmoid((t + logistic(t.shape)) / w) * 1.2 - 0.1).clamp(0, 1),
        }
        for name, surrogate in surrogates.items():
            results = []
            for f in (FUNCTIONS[name], surrogate):
                leaf, temperature = x.clone().requires_grad_(), warmth.clone().requires_grad_()
                y = f(leaf, temperature)
                first = torch.autograd.grad(y, (leaf, temperature), g, create_graph=True)
                second = torch.autograd.grad((first[0] * g).sum() + first[1].sum(), (leaf, temperature))
                results.append((y, *first, *second))
            for order, (actual, expected) in zip((0, 1, 1, 2, 2), zip(*results, strict=True), strict=True):
                if name in DISCRETE and order == 0:
                    continue
                assert_near(actual, expected, order=order)

    def test_second_derivative_of_reinmax(self):
        x, g = random(7), random(7).cos()
        z = estimators.reinmax_bernoulli(x, 1.3)
        a = (torch.sigmoid(x / 1.3) + z) / 2
        constant = torch.logit(a) - x
        results = []
        for f in (
            lambda t: estimators.reinmax_bernoulli(t, 1.3),
            lambda t: 2 * torch.sigmoid(t + constant) - torch.sigmoid(t) / 2,
        ):
            leaf = x.clone().requires_grad_()
            first = torch.autograd.grad(f(leaf), leaf, g, create_graph=True)[0]
            results.append(torch.autograd.grad(first.sum(), leaf)[0])
        assert_near(*results, order=2)

    def test_gradgradcheck(self):
        x = random(2, 3).requires_grad_()
        warmth = torch.tensor(0.8).double().requires_grad_()
        smooth = [
            lambda t, w: estimators.relaxed_bernoulli(t, w),
            lambda t, w: estimators.hard_concrete(t, w),
            lambda t, w: estimators.hard_concrete_open_probability(t, w),
            lambda t, w: estimators.hard_concrete_gate(t) * w,
        ]
        for f in smooth:
            assert torch.autograd.gradcheck(f, (x, warmth))
            assert torch.autograd.gradgradcheck(f, (x, warmth))

    @each
    def test_transforms(self, name):
        f = lambda t: FUNCTIONS[name](t, 0.7)  # noqa: E731
        x = random(3, 5)
        weights = random(5).cos()
        loss = lambda t: (f(t) * weights).sum() + f(t).square().sum()  # noqa: E731
        eager = torch.stack([slope(loss, row, None) for row in x])
        assert_near(vmap(f)(x), torch.stack([f(row) for row in x]))
        assert_near(vmap(grad(loss))(x), eager, order=1)
        assert_near(jacrev(f)(x[0]), torch.autograd.functional.jacobian(f, x[0]), order=1)
        hessian = torch.autograd.functional.hessian(loss, x[0])
        assert_near(jacrev(grad(loss))(x[0]), hessian, order=2)
        warmth = torch.tensor([0.4, 1.0, 2.0]).double()
        by_temperature = vmap(lambda t, w: FUNCTIONS[name](t, w))(x, warmth)
        expected = torch.stack([FUNCTIONS[name](row, float(w)) for row, w in zip(x, warmth, strict=True)])
        assert_near(by_temperature, expected)

    @each
    def test_unchecked_bad_elements_are_nan(self, name):
        y = vmap(FUNCTIONS[name])(torch.tensor([[0.0, NAN], [INF, -INF]]))
        assert y[0, 1].isnan()
        assert y[[0, 1, 1], [0, 0, 1]].isfinite().all()
        for bad in (0.0, -1.0, NAN):
            assert vmap(FUNCTIONS[name])(torch.zeros(2, 2), torch.tensor([bad, 1.0]))[0].isnan().all()

    @each
    @pytest.mark.filterwarnings("ignore:.*is deprecated")
    def test_compile(self, name):
        torch.compiler.reset()
        f = lambda t: FUNCTIONS[name](t, 0.7)  # noqa: E731
        x, g = random(4, 3), random(4, 3)
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        assert_near(compiled(x), f(x))
        assert_near(slope(compiled, x, g), slope(f, x, g), order=1)


class TestPrecision:
    @each
    @pytest.mark.parametrize("dtype", HALF)
    def test_half_is_float32_rounded_once(self, name, dtype):
        x, g = random(40, dtype=torch.float32).to(dtype), random(40, dtype=torch.float32).to(dtype)
        f = lambda t: FUNCTIONS[name](t, 0.5, generator=seeded())  # noqa: E731
        assert f(x).dtype == dtype
        assert_identical(f(x), f(x.float()).to(dtype))
        assert_identical(slope(f, x, g), slope(f, x.float(), g.float()).to(dtype))

    @each
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
    def test_finite_for_extreme_input(self, name, dtype):
        largest, tiny = torch.finfo(dtype).max, torch.finfo(dtype).tiny
        x = torch.tensor([largest, -largest, tiny, 0, 90, -90, 750, -750, 30, -30], dtype=dtype, requires_grad=True)
        lowest = 1e-3 if dtype == torch.float16 else 1e-30  # the slope at 0 is 1 / (4 temperature)
        for temperature in (lowest, 1e-3, 1.0, 1e30, torch.tensor(lowest), torch.tensor(1e30)):
            y = FUNCTIONS[name](x, temperature)
            assert y.isfinite().all()
            first = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
            assert first.isfinite().all()
            assert torch.autograd.grad(first.sum(), x)[0].isfinite().all()

    @each
    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", HALF)
    def test_ten_million_draws(self, name, dtype):
        for scale in (0.0, 20.0):
            y = FUNCTIONS[name]((torch.randn(5_000_000) * scale).to(dtype), 0.3)
            assert y.isfinite().all()
            assert ((y >= 0) & (y <= 1)).all()

    @each
    def test_meta(self, name):
        assert FUNCTIONS[name](torch.empty(2, 3, device="meta")).shape == (2, 3)


class TestModules:
    @each
    def test_is_the_function(self, name):
        x = random(4, 5)
        module = MODULES[name](0.4)
        assert_identical(module(x, generator=seeded()), FUNCTIONS[name](x, 0.4, generator=seeded()))
        assert "temperature=0.4" in repr(module)
        assert "dim" not in repr(module)
        module = MODULES[name](dl.schedules.Exponential(0.4, 0.1, steps=3))
        assert_identical(module(x, generator=seeded()), FUNCTIONS[name](x, 0.4, generator=seeded()))
        module = MODULES[name](torch.full((4, 1), 0.4))
        assert module(x).shape == x.shape

    @each
    def test_learnable(self, name):
        if "reinmax" in name:
            assert "learnable" not in inspect.signature(MODULES[name]).parameters
            return
        module = MODULES[name](0.8, learnable=True)
        (module(random(50)) * random(50)).sum().backward()
        assert module.log_temperature.grad.isfinite()
        assert module.log_temperature.grad != 0

    def test_hard_concrete_in_evaluation_mode(self):
        module = estimators.HardConcrete(0.5, lower=-0.3, upper=1.4)
        x = random(100)
        assert (module(x) != module(x)).any()
        options = {"lower": -0.3, "upper": 1.4}
        assert_identical(module.open_probability(x), estimators.hard_concrete_open_probability(x, 0.5, **options))
        module.eval()
        assert_identical(module(x), estimators.hard_concrete_gate(x, **options))
        assert "lower=-0.3, upper=1.4" in repr(module)

    def test_penalty_closes_gates_that_do_not_pay(self):
        torch.manual_seed(0)
        logits = torch.zeros(20, requires_grad=True)
        module = estimators.HardConcrete()
        gain = torch.cat([torch.full((10,), 1.0), torch.full((10,), 0.05)])
        optimiser = torch.optim.Adam([logits], lr=0.1)
        for _ in range(200):
            optimiser.zero_grad()
            loss = (gain * (1 - module(logits))).sum() + 0.3 * module.open_probability(logits).sum()
            loss.backward()
            optimiser.step()
        z = module.eval()(logits)
        assert (z[:10] == 1).all()
        assert (z[10:] == 0).all()


X = torch.randn(3, 4)
BAD = [
    (TypeError, "logits", r"torch\.Tensor, got list", lambda f: f([1.0])),
    (TypeError, "logits", r"floating-point dtype, got bool", lambda f: f(torch.ones(3).bool())),
    (ValueError, "logits", r"not contain NaN, got 2 of them", lambda f: f(torch.tensor([NAN, 1.0, NAN]))),
    (ValueError, "temperature", r"finite number in \(0, .*got 0", lambda f: f(X, 0.0)),
    (ValueError, "temperature", r"finite number in \(0, .*got -2", lambda f: f(X, -2)),
    (ValueError, "temperature", r"finite number in \(0, .*got nan", lambda f: f(X, NAN)),
    (TypeError, "temperature", r"a number, got NoneType", lambda f: f(X, None)),
    (ValueError, "temperature", r"positive and finite everywhere, got -1", lambda f: f(X, torch.tensor(-1.0))),
    (ValueError, "temperature", r"broadcastable to the shape of the logits, \(3, 4\), got \(3,\)",
     lambda f: f(X, torch.ones(3))),
    (ValueError, "temperature", r"broadcastable .*\(3, 4\), got \(2, 3, 4\)", lambda f: f(X, torch.ones(2, 3, 4))),
    (TypeError, "generator", r"torch\.Generator or None, got str", lambda f: f(X, generator="0")),
    (ValueError, "generator", r"on the input's device, meta, got one on cpu",
     lambda f: f(X.to("meta"), generator=seeded())),
]  # fmt: skip


@pytest.mark.parametrize(("error", "argument", "shown", "call"), BAD)
@each
def test_bad_input(name, error, argument, shown, call):
    own = name.split(" ")[0]
    with pytest.raises(error, match=rf"^difflayers\.estimators\.{own}: argument '{argument}' must .*{shown}"):
        call(FUNCTIONS[name])


def test_own_options_are_checked():
    with pytest.raises(TypeError, match=r"relaxed_bernoulli: argument 'hard' must be True or False, got int"):
        estimators.relaxed_bernoulli(X, hard=1)
    with pytest.raises(ValueError, match=r"reinmax_bernoulli: argument 'temperature' must not require a gradient"):
        estimators.reinmax_bernoulli(X, torch.ones(1, requires_grad=True))
    for f in (estimators.hard_concrete, estimators.hard_concrete_gate, estimators.hard_concrete_open_probability):
        with pytest.raises(ValueError, match=rf"{f.__name__}: argument 'lower' must be a finite number .*got 0"):
            f(X, lower=0.0)
        with pytest.raises(ValueError, match=rf"{f.__name__}: argument 'upper' must be a finite number .*got 1"):
            f(X, upper=1.0)
