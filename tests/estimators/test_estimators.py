"""What holds for every one-of-n estimator of the table: values, gradients, transforms, dtypes, bad input."""

import inspect
import math
import re

import pytest
import torch
from torch.func import grad, jacrev, vmap

import difflayers as dl
from difflayers import _random, estimators
from difflayers.estimators import gapped, tempered
from tests.estimators.cases import CASES, Noise, name_of
from tests.tolerances import assert_identical, assert_near

each_case = pytest.mark.parametrize("case", CASES, ids=name_of)
HALF = (torch.float16, torch.bfloat16)
INF, NAN = math.inf, math.nan


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=seeded(1))


@pytest.fixture
def noise(monkeypatch):
    """The same noise at every call and under every transform."""
    Noise().install(monkeypatch)


def assert_one_hot(sample, dim=-1):
    assert ((sample == 0) | (sample == 1)).all()
    assert (sample.sum(dim) == 1).all()


WEIGHTS = torch.sin(torch.arange(64, dtype=torch.float64))


def loss(y):
    """Not linear, so that the gradient depends on the sample as well."""
    flat = y.reshape(-1)
    return (flat * WEIGHTS[: flat.numel()].to(y.dtype)).sum() + (flat * WEIGHTS[: flat.numel()].cos()).sum().square()


def gradient(f, x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(loss(f(leaf)), leaf)[0]


@each_case
class TestValues:
    @pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 4)])
    def test_shape_and_sum(self, case, shape):
        x = random(*shape)
        for dim in range(-len(shape), len(shape)):
            y = case.run(x, dim=dim)
            assert y.shape == x.shape
            assert y.dtype == x.dtype
            assert (y >= 0).all()
            assert_near(y.sum(dim), torch.ones_like(y.sum(dim)))
            if case.hard:
                assert_one_hot(y, dim)

    def test_same_seed_same_sample_whatever_dim_and_strides(self, case):
        x = random(4, 5)
        variants = {
            "transposed": lambda x, **s: case.run(x.t().contiguous(), dim=0, **s).t(),
            "column major": lambda x, **s: case.run(x.t().contiguous().t(), **s),
            "strided": lambda x, **s: case.run(torch.stack([x, x * 0], -1).flatten(1)[:, ::2], **s),
            "three dimensions": lambda x, **s: case.run(x.reshape(2, 2, 5), **s).reshape(4, 5),
            "middle": lambda x, **s: case.run(x.reshape(2, 2, 5).mT, dim=1, **s).mT.reshape(4, 5),
            "broadcast": lambda x, **s: case.run(x[:, None].expand(4, 1, 5), **s)[:, 0],
            "one row of a batch": lambda x, **s: case.run(x[None], **s)[0],
        }
        expected = case.run(x, generator=seeded())
        slope = gradient(lambda x: case.run(x, generator=seeded()), x)
        for f in variants.values():
            y = f(x, generator=seeded())
            assert_identical(y.argmax(1), expected.argmax(1))
            assert_near(y, expected)
            assert_near(gradient(lambda x, f=f: f(x, generator=seeded()), x), slope, order=1)

    def test_frequencies_are_the_softmax(self, case):
        x = torch.tensor([1.0, -INF, 0.0, -1.5, 3.0, 0.2])
        count = 40_000
        for temperature in (0.3, 1.7):  # the sample does not depend on it
            y = case.run(x.expand(count, 6), temperature, generator=seeded(3))
            seen = torch.nn.functional.one_hot(y.argmax(1), 6).sum(0) / count
            p = torch.softmax(x, 0)
            assert ((seen - p).abs() <= 4.5 * (p * (1 - p) / count).sqrt()).all()
            assert seen[1] == 0

    def test_rows_are_independent(self, case):
        y = case.run(torch.zeros(20_000, 2), generator=seeded()).argmax(1).double() - 0.5
        assert abs(float((y[1:] * y[:-1]).mean())) < 4.5 * 0.25 / math.sqrt(20_000)

    def test_nothing_masked_is_drawn(self, case):
        x = torch.full((2000, 7), -INF)
        x[:, 2], x[:, 5] = 0.0, -30.0
        y = case.run(x, generator=seeded())
        assert (y[:, [0, 1, 3, 4, 6]] == 0).all()
        x[:, 5] = -INF  # one left
        assert (case.run(x)[:, 2] == 1).all()

    @pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
    def test_nothing_masked_is_drawn_by_the_extreme_random_numbers(self, case, u, monkeypatch):
        monkeypatch.setattr(_random, "uniform", lambda shape, **s: torch.full(shape, u, dtype=torch.float64))
        y = case.run(torch.tensor([[-INF, 0.0, 1.0, -INF], [-INF, -INF, 3.0, -INF]]))
        assert (y[:, [0, 3]] == 0).all()
        assert y[1, 2] == 1

    def test_shift_does_not_matter(self, case):
        x = random(6, 5)
        assert_near(case.run(x + 100.0, generator=seeded()), case.run(x, generator=seeded()), factor=100)

    def test_no_elements_and_no_rows(self, case):
        for shape in ((0,), (3, 0), (0, 4), (2, 0, 3), (0, 0)):
            x = torch.zeros(shape, requires_grad=True)
            y = case.run(x)
            assert y.shape == shape
            y.sum().backward()
            assert x.grad.shape == shape

    def test_one_element_is_certain(self, case):
        x = torch.tensor([[-3.0], [50.0]], requires_grad=True)
        y = case.run(x)
        assert_identical(y.detach(), torch.ones(2, 1))
        (y * 3).sum().backward()
        assert_identical(x.grad, torch.zeros(2, 1))

    def test_global_generator(self, case):
        x = random(8, 50)
        torch.manual_seed(3)
        first = case.run(x)
        second = case.run(x)
        torch.manual_seed(3)
        assert_identical(case.run(x), first)
        assert (first.argmax(1) != second.argmax(1)).any()


@each_case
class TestPrecision:
    @pytest.mark.parametrize("dtype", HALF)
    def test_half_is_float32_rounded_once(self, case, dtype):
        x = random(6, 9, dtype=torch.float32).to(dtype)
        y = case.run(x, 0.5, generator=seeded())
        assert y.dtype == dtype
        assert_identical(y, case.run(x.float(), 0.5, generator=seeded()).to(dtype))
        slope = gradient(lambda t: case.run(t, 0.5, generator=seeded()).float(), x)
        assert slope.dtype == dtype
        expected = gradient(lambda t: case.run(t, 0.5, generator=seeded()), x.float())
        assert_near(slope, expected, order=1, dtype=dtype, factor=4)  # the loss is taken at the rounded sample

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
    def test_finite_for_extreme_logits(self, case, dtype):
        largest = torch.finfo(dtype).max
        rows = [[largest, -largest, 0, 1], [largest, largest, largest, -INF], [-largest, -largest, -INF, -INF]]
        x = torch.tensor([*rows, [1e-8, 0, -1e-8, -INF], [60000.0, 59000, 0, 0]], dtype=dtype, requires_grad=True)
        y = case.run(x)
        assert y.isfinite().all()
        assert torch.autograd.grad(loss(y.double()), x)[0].isfinite().all()

    def test_finite_for_extreme_temperatures(self, case):
        x = torch.tensor([[1e30, -1e30, 3.0, -INF], [1.0, 2.0, 3.0, -INF]], requires_grad=True)
        for temperature in (1e-38, 1e-30, 1e-10, 1e30):
            y = case.run(x, temperature)
            assert y.isfinite().all()
            assert torch.autograd.grad(loss(y.double()), x)[0].isfinite().all()

    def test_autocast(self, case):
        x = random(3, 5, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = case.run(x, generator=seeded())
        assert y.dtype == torch.float32
        assert_identical(y, case.run(x, generator=seeded()))

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", HALF)
    def test_ten_million_draws(self, case, dtype):
        rows = 10_000_000 // 1000 // (10 if "rao" in case.name else 1)  # which draws ten times as much
        draws = 0
        for logits in (torch.zeros(rows // 2, 1000), torch.randn(rows // 2, 1000) * 20):
            y = case.run(logits.to(dtype), 0.5)
            draws += logits.numel()
            assert y.isfinite().all()
            assert_near(y.float().sum(1), torch.ones(len(y)), dtype=torch.float32 if case.hard else dtype, factor=10)
        assert draws == rows * 1000


@each_case
@pytest.mark.usefixtures("noise")
class TestGradients:
    def frozen(self, case, x, temperature):
        """The surrogate as a function of logits and temperature, constants and sample as they are at x."""
        x = x.detach().clone()
        at = temperature.detach() if isinstance(temperature, torch.Tensor) else temperature
        sample = torch.nn.functional.one_hot(case.run(x, at).argmax(1), x.shape[1]).to(x)
        if case.name == "reinmax":
            return lambda logits, unused: case.surrogate(logits, at, sample, x)
        return lambda logits, warmth: case.surrogate(logits, warmth, sample, x)

    @pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
    def test_gradient_is_the_surrogates(self, case, temperature):
        x = random(4, 5)
        leaf = x.clone().requires_grad_()
        y = case.run(leaf, temperature)
        soft = self.frozen(case, x, temperature)(leaf, temperature)
        upstream = random(4, 5)
        expected = torch.autograd.grad(soft, leaf, upstream)[0]
        assert_near(torch.autograd.grad(y, leaf, upstream)[0], expected, order=1)
        if not case.hard:
            assert_near(y, soft)

    def test_gradient_for_the_temperature(self, case):
        x = random(4, 5)
        for temperature in (torch.tensor(0.7).double(), torch.linspace(0.5, 2, 4).double()[:, None]):
            warmth = temperature.clone().requires_grad_()
            if not case.learns:
                with pytest.raises(ValueError, match="'temperature' must not require a gradient"):
                    case.run(x, warmth)
                continue
            upstream = random(4, 5)
            soft = self.frozen(case, x, temperature)(x, warmth)
            expected = torch.autograd.grad(soft, warmth, upstream)[0]
            assert_near(torch.autograd.grad(case.run(x, warmth), warmth, upstream)[0], expected, order=1)

    def test_temperature_per_row(self, case):
        warmths = [0.3, 1.0, 4.0]
        x, temperature, upstream = random(3, 5), torch.tensor(warmths).double()[:, None], random(3, 5)
        slope = lambda f: torch.func.vjp(f, x)[1](upstream)[0]  # noqa: E731
        together = slope(lambda t: case.run(t, temperature))
        for row, warmth in enumerate(temperature[:, 0].tolist()):
            assert_near(together[row], slope(lambda t, warmth=warmth: case.run(t, warmth))[row], order=1)
        assert_near(slope(lambda t: case.run(t.t(), temperature.t(), dim=0).t()), together, order=1)

    def test_second_derivative_is_the_surrogates(self, case):
        x = random(3, 4)
        upstream = random(3, 4)
        direction = upstream.cos()

        def twice(f):
            leaf, above = x.clone().requires_grad_(), upstream.clone().requires_grad_()
            first = torch.autograd.grad(f(leaf), leaf, above, create_graph=True)[0]
            return torch.autograd.grad((first * direction).sum(), (leaf, above))

        frozen = self.frozen(case, x, 0.8)
        for actual, expected in zip(twice(lambda t: case.run(t, 0.8)), twice(lambda t: frozen(t, 0.8)), strict=True):
            assert_near(actual, expected, order=2)
        # and the surrogate written for this test is what it says
        warmth = torch.tensor(0.8).double().requires_grad_()
        arguments = (x.clone().requires_grad_(), warmth)
        assert torch.autograd.gradcheck(frozen, arguments)
        assert torch.autograd.gradgradcheck(frozen, arguments)

    def test_masked_entries_get_no_gradient_and_disturb_nothing(self, case):
        x = random(3, 4)
        masked = torch.cat([x, torch.full((3, 2), -INF, dtype=x.dtype)], 1)
        for temperature in (0.6, torch.tensor(0.6).double()):
            slope = gradient(lambda t, temperature=temperature: case.run(t, temperature), masked)
            assert (slope[:, 4:] == 0).all()
            assert slope.isfinite().all()
            assert (slope.sum(1).abs() < 1e-12).all()
        leaf = masked.clone().requires_grad_()
        first = torch.autograd.grad(loss(case.run(leaf)), leaf, create_graph=True)[0]
        assert torch.autograd.grad(first.square().sum(), leaf)[0].isfinite().all()

    def test_mask_and_learnable_temperature(self, case):
        if not case.learns:
            pytest.skip("the temperature has no gradient")
        x = random(3, 4)
        x[:, 1] = -INF
        warmth = torch.tensor(0.6).double().requires_grad_()
        actual = torch.autograd.grad(loss(case.run(x, warmth)), warmth)[0]
        assert actual.isfinite()
        assert actual != 0

    def test_func_grad_vmap_and_jacrev(self, case):
        x = random(3, 5)
        f = lambda t: loss(case.run(t, 0.7))  # noqa: E731
        assert_near(grad(f)(x), gradient(lambda t: case.run(t, 0.7), x), order=1)
        rows = [case.run(row, 0.7) for row in x]
        assert_near(vmap(lambda row: case.run(row, 0.7))(x), torch.stack(rows))
        assert_near(vmap(lambda row: case.run(row, 0.7), in_dims=1)(x.t().contiguous()), torch.stack(rows))
        alone = torch.stack([gradient(lambda t: case.run(t, 0.7), row) for row in x])
        assert_near(vmap(grad(f))(x), alone, order=1)
        jacobian = torch.autograd.functional.jacobian(lambda t: case.run(t, 0.7), x)
        assert_near(jacrev(lambda t: case.run(t, 0.7))(x), jacobian, order=1)
        hessian = torch.autograd.functional.hessian(f, x[0])
        assert_near(jacrev(grad(f))(x[0]), hessian, order=2)

    def test_vmap_over_the_temperature(self, case):
        x, warmth = random(3, 5), torch.tensor([0.4, 1.0, 2.0]).double()
        f = lambda row, t: grad(lambda r: loss(case.run(r, t)))(row)  # noqa: E731
        expected = torch.stack([f(row, t) for row, t in zip(x, warmth, strict=True)])
        assert_near(vmap(f)(x, warmth), expected, order=1)

    def test_unchecked_bad_rows_are_nan(self, case):
        x = random(5, 4)
        x[1, 2], x[2] = NAN, -INF
        x[3, 0] = INF
        y = vmap(case.run)(x)
        assert y[1:4].isnan().all()
        assert y[[0, 4]].isfinite().all()
        for bad in (0.0, -1.0, NAN):  # of the backward pass only, where the sample is hard
            slope = vmap(grad(lambda row, t: loss(case.run(row, t))), in_dims=(0, None))(x, torch.tensor(bad).double())
            assert slope[[0, 4]].isnan().all()


@each_case
@pytest.mark.filterwarnings("ignore:.*is deprecated")  # torch's own, while tracing
class TestCompile:
    @pytest.fixture(autouse=True)
    def fresh_compiler(self):
        torch.compiler.reset()

    @pytest.mark.usefixtures("noise")
    def test_same_as_eager(self, case):
        f = lambda t: case.run(t, 0.7, dim=0)  # noqa: E731
        x = random(5, 3)
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        assert_near(compiled(x), f(x))
        assert_near(gradient(compiled, x), gradient(f, x), order=1)

    def test_draws_its_own_noise(self, case):
        compiled = torch.compile(lambda t: case.run(t), fullgraph=True, backend="aot_eager")
        x = torch.zeros(50, 8, requires_grad=True)
        first, second = compiled(x), compiled(x)
        assert (first.argmax(1) != second.argmax(1)).any()
        if case.hard:
            assert_one_hot(first)
        loss(first[:3].double()).backward()
        assert x.grad.isfinite().all()
        assert (x.grad[:3] != 0).any()

    def test_export(self, case):
        program = torch.export.export(case.module(0.5), (torch.zeros(4, 6),))
        y = program.module()(torch.zeros(4, 6))
        assert_near(y.sum(1), torch.ones(4))
        if case.hard:
            assert_one_hot(y)

    def test_a_generator_raises(self, case):
        compiled = torch.compile(lambda t, g: case.run(t, generator=g), fullgraph=True, backend="aot_eager")
        with pytest.raises(Exception, match=r"(?i)generator"):
            compiled(torch.zeros(3), seeded())


@pytest.mark.filterwarnings("ignore:.*is deprecated")  # torch's own, while tracing
@pytest.mark.parametrize(
    "module",
    [
        estimators.RelaxedBernoulli(0.5),
        estimators.StraightThroughBernoulli(),
        estimators.ReinMaxBernoulli(),
        estimators.HardConcrete(),
        estimators.HardConcrete().eval(),
        estimators.Sparsemax(),
        estimators.Entmax15(),
    ],
    ids=repr,
)
def test_export_of_the_others(module):
    y = torch.export.export(module, (torch.zeros(4, 6),)).module()(torch.zeros(4, 6))
    assert y.shape == (4, 6)
    assert ((y >= 0) & (y <= 1)).all()


@each_case
def test_vmap_randomness(case):
    x = torch.zeros(40, 9)
    different = vmap(case.run, randomness="different")(x).argmax(1)
    assert len(different.unique()) > 1
    same = vmap(case.run, randomness="same")(x).argmax(1)
    assert len(same.unique()) == 1
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(case.run)(x)


@each_case
def test_meta_device(case):
    y = case.run(torch.empty(3, 5, device="meta"), dim=0)
    assert y.shape == (3, 5)
    assert y.device.type == "meta"


class TestModules:
    @each_case
    def test_is_the_function(self, case):
        x = random(4, 5)
        for settings in ({}, {"dim": 0}):
            module = case.module(0.5, **settings)
            assert_identical(module(x, generator=seeded()), case.run(x, 0.5, generator=seeded(), **settings))
        assert "temperature=0.5, dim=-1" in repr(case.module(0.5))
        assert isinstance(module, dl.protocols.Estimator) or callable(module)

    @each_case
    def test_schedule_and_tensor(self, case):
        schedule = dl.schedules.Exponential(1.0, 0.25, steps=2)
        module = case.module(schedule)
        schedule.step()
        x = random(4, 5)
        upstream = lambda f: gradient(f, x)  # noqa: E731
        expected = upstream(lambda t: case.run(t, 0.5, generator=seeded()))
        assert_identical(upstream(lambda t: module(t, generator=seeded())), expected)
        module = case.module(torch.tensor(0.5))
        assert_near(upstream(lambda t: module(t, generator=seeded())), expected, order=1)
        assert "fixed_temperature" in module.state_dict()

    @each_case
    def test_learnable(self, case):
        if not case.learns:
            assert "learnable" not in inspect.signature(case.module).parameters
            return
        module = case.module(0.5, learnable=True)
        assert [name for name, _ in module.named_parameters()] == ["log_temperature"]
        loss(module(random(4, 5))).backward()
        assert module.log_temperature.grad.isfinite()
        assert module.log_temperature.grad != 0

    def test_settings_are_checked(self):
        with pytest.raises(ValueError, match=r"GumbelRao: argument 'samples' must be at least 1, got 0"):
            estimators.GumbelRao(samples=0)
        with pytest.raises(ValueError, match=r"GappedStraightThrough: argument 'gap' must be a finite number in \[0"):
            estimators.GappedStraightThrough(gap=-1.0)
        with pytest.raises(ValueError, match=r"'gap' must be one of 'probability', got 'p'"):
            estimators.GappedStraightThrough(gap="p")


@pytest.mark.parametrize("name", estimators.__all__)
def test_docstring_sections(name):
    thing = getattr(estimators, name)
    text = inspect.getdoc(thing)
    for section in ("Args:", "Returns:", "Raises:", "Example:"):
        assert section in text
    assert re.search(r"^Cost", text, re.MULTILINE)
    assert re.search(r"[Tt]ransforms", text)
    named = text[text.index("Args:") : text.index("Returns:")]
    for parameter in inspect.signature(thing).parameters:
        assert re.search(rf"\b{parameter}\b", named), f"{parameter} is not described"


X = torch.randn(3, 4)
BAD = [  # error, argument, what the message must show, a call with that argument wrong
    (TypeError, "logits", r"torch\.Tensor, got list", lambda f: f([3.0, 1.0])),
    (TypeError, "logits", r"floating-point dtype, got int64", lambda f: f(torch.ones(3, 4).long())),
    (ValueError, "logits", r"at least one dimension, got a scalar", lambda f: f(torch.tensor(1.0))),
    (ValueError, "logits", r"not contain NaN, got 1 of them", lambda f: f(torch.tensor([1.0, NAN]))),
    (ValueError, "logits", r"not contain \+inf, got 2 of them", lambda f: f(torch.tensor([INF, 0.0, INF]))),
    (ValueError, "logits", r"something to choose.*along dim -2, got 1 of 2 slices that are -inf throughout",
     lambda f: f(torch.tensor([[-INF, 0.0], [-INF, 1.0]]), dim=0)),
    (ValueError, "dim", r"in \[-2, 1\].*got 2", lambda f: f(X, dim=2)),
    (TypeError, "dim", r"an integer, got float", lambda f: f(X, dim=1.0)),
    (ValueError, "temperature", r"finite number in \(0, .*got 0", lambda f: f(X, 0)),
    (ValueError, "temperature", r"finite number in \(0, .*got -1", lambda f: f(X, -1.0)),
    (ValueError, "temperature", r"finite number in \(0, .*got nan", lambda f: f(X, NAN)),
    (ValueError, "temperature", r"finite number in \(0, .*got inf", lambda f: f(X, INF)),
    (TypeError, "temperature", r"a number, got str", lambda f: f(X, "1")),
    (TypeError, "temperature", r"floating-point dtype, got int64", lambda f: f(X, torch.tensor(1))),
    (ValueError, "temperature", r"positive and finite everywhere, got 0",
     lambda f: f(X, torch.tensor([[1.0], [0], [1]]))),
    (ValueError, "temperature", r"broadcastable.*got \(3,\); use keepdim form", lambda f: f(X, torch.ones(3))),
    (TypeError, "generator", r"torch\.Generator or None, got int", lambda f: f(X, generator=3)),
    (ValueError, "generator", r"on the input's device, meta, got one on cpu",
     lambda f: f(X.to("meta"), generator=torch.Generator())),
]  # fmt: skip


@pytest.mark.parametrize(("error", "argument", "shown", "call"), BAD, ids=[f"{row[1]}: {row[2][-24:]}" for row in BAD])
@each_case
def test_bad_input(case, error, argument, shown, call):
    name = case.name.split(" ")[0]
    with pytest.raises(error, match=rf"^difflayers\.(\w+\.)?{name}\w*: argument '{argument}' must .*{shown}"):
        call(case.run)


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, torch.tensor(1e-45), torch.tensor(1e-15, requires_grad=True)])
def test_tempered_softmax_does_not_overflow(temperature):
    keys = torch.tensor([[1e30, -1e30, -INF], [3e38, 1e38, -3e38]], requires_grad=True)
    y = tempered.softmax(keys, temperature)
    assert_identical(y.detach(), torch.tensor([[1.0, 0.0, 0.0]]).expand(2, 3))
    leaves = [keys, temperature] if isinstance(temperature, torch.Tensor) and temperature.requires_grad else [keys]
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(loss(y), leaves))


def test_gap_by_probability_keeps_its_digits():
    """From p = 1e-30, where -log(1 - p) / p is 0 / 0, to 1 - p = 1e-43, which float32 cannot hold as 1 - p."""
    x = torch.tensor([-70.0, -20.0, -5.0, 0.0, 5.0, 20.0, 100.0])
    rows = torch.stack([x, torch.zeros(7)], 1)
    chosen = torch.tensor([True, False]).expand(7, 2)
    p, rest = torch.sigmoid(x.double()), torch.nn.functional.logsigmoid(-x.double())
    torch.testing.assert_close(gapped.probable_gap(rows, chosen)[:, 0].double(), -rest / p, rtol=1e-5, atol=0)


def test_own_options_are_checked():
    with pytest.raises(TypeError, match=r"gumbel_softmax: argument 'hard' must be True or False, got int"):
        estimators.gumbel_softmax(X, hard=1)
    with pytest.raises(TypeError, match=r"gumbel_rao: argument 'samples' must be an integer, got float"):
        estimators.gumbel_rao(X, samples=2.0)
    with pytest.raises(ValueError, match=r"gumbel_rao: argument 'samples' must be at least 1, got 0"):
        estimators.gumbel_rao(X, samples=0)
    with pytest.raises(TypeError, match=r"gapped_straight_through: argument 'gap' must be a number, got NoneType"):
        estimators.gapped_straight_through(X, gap=None)
    with pytest.raises(ValueError, match=r"gapped_straight_through: argument 'gap' .*got -0\.5"):
        estimators.gapped_straight_through(X, gap=-0.5)
