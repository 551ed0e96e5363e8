"""What every k-of-n method promises, for each of them."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacrev, vmap

import difflayers as dl
from difflayers import schedules
from tests.subsets.table import METHODS, exact
from tests.tolerances import assert_identical, assert_near

each = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
deterministic = pytest.mark.parametrize("method", [m for m in METHODS if not m.random], ids=lambda m: m.name)
smooth = pytest.mark.parametrize("method", [m for m in METHODS if m.smooth], ids=lambda m: m.name)
softness = pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
INF = math.inf


def random(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype)


def gradient(f, x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad((f(leaf) * torch.arange(1.0, x.numel() + 1).reshape(x.shape)).sum(), leaf)[0]


@softness
@each
class TestShapes:
    def test_shape_sum_and_range(self, method, hard):
        for shape in ((5,), (4, 6), (2, 3, 7), (0, 5), (2, 0, 5)):
            x = random(*shape)
            for k in range(x.shape[-1] + 1):
                y = method(x, k, 0.7, hard=hard)
                assert y.shape == x.shape
                assert y.dtype == x.dtype
                assert_near(y.sum(-1), torch.full(shape[:-1], float(k)).double(), factor=10)
                assert (y >= 0).all()
                if method.unit or hard:
                    assert (y <= 1 + 1e-12).all()
                if hard:
                    assert ((y == 0) | (y == 1)).all()

    def test_nothing_to_choose(self, method, hard):
        """k = 0, k = n, one element, no elements: known, with zero gradient."""
        for n, k in ((0, 0), (1, 0), (1, 1), (4, 0), (4, 4)):
            x = random(3, n).requires_grad_()
            y = method(x, k, 2.0, hard=hard)
            tolerance = 1e-11 if method.name == "lapsum_topk" else 0  # whose k is real
            torch.testing.assert_close(y.detach(), torch.full_like(x, float(k > 0)), rtol=0, atol=tolerance)
            (slope,) = torch.autograd.grad(y.sum(), x)
            torch.testing.assert_close(slope, torch.zeros_like(x), rtol=0, atol=tolerance)

    def test_dim_and_strides(self, method, hard):
        x = random(3, 5, 4)
        expected = method(x, 2, hard=hard)
        for dim in (0, 1, -2):
            moved = x.movedim(-1, dim)  # not contiguous
            assert_identical(method(moved, 2, hard=hard, dim=dim), expected.movedim(-1, dim))
            assert_identical(method(moved.contiguous(), 2, hard=hard, dim=dim), expected.movedim(-1, dim))
        spread = torch.stack([x, x], dim=-1)[..., 0]
        assert_identical(method(spread, 2, hard=hard), expected)

    def test_half_precision_is_rounded_once(self, method, hard):
        for dtype in (torch.float16, torch.bfloat16):
            x = random(6, 9).to(dtype)
            y = method(x, 3, 0.5, hard=hard)
            assert y.dtype == dtype
            assert_identical(y, method(x.float(), 3, 0.5, hard=hard).to(dtype))
            x.requires_grad_()
            method(x, 3, 0.5, hard=hard).square().sum().backward()
            assert x.grad.dtype == dtype
            assert x.grad.isfinite().all()

    def test_float32(self, method, hard):
        if method.random or method.samples:
            return  # other noise
        x = random(6, 9, dtype=torch.float32)
        y, wanted = method(x, 3, 0.5, hard=hard), method(x.double(), 3, 0.5, hard=hard)
        assert_near(y, wanted, dtype=torch.float32)
        f = lambda t: method(t, 3, 0.5, hard=hard).cos()  # noqa: E731
        assert_near(gradient(f, x), gradient(f, x.double()), order=1, dtype=torch.float32, factor=4)

    def test_tensor_temperature(self, method, hard):
        x = random(3, 5)
        temperature = torch.tensor([[0.3], [1.0], [2.0]], dtype=torch.float64)
        y = method(x, 2, temperature, hard=hard)
        if not method.random and not method.samples:
            rows = [method(row, 2, t.item(), hard=hard) for row, t in zip(x, temperature, strict=True)]
            assert_near(y, torch.stack(rows))
        same = method(x, 2, torch.tensor(0.3, dtype=torch.float64), hard=hard)
        assert_near(same, method(x, 2, 0.3, hard=hard))
        turned = method(x.T, 2, temperature.T, hard=hard, dim=0)
        assert_identical(turned, y.T)


@each
class TestMeaning:
    def test_hard_is_exact_with_the_relaxed_gradient(self, method):
        x = random(4, 7)
        for k in (1, 3, 6):
            y = method(x, k, 0.8, hard=True)
            if not method.samples:
                assert_identical(y, exact(x, k))
            assert_identical(y.sum(-1), torch.full((4,), float(k)).double())
            f = lambda t, hard, k=k: method(t, k, 0.8, hard=hard)  # noqa: E731
            assert_identical(gradient(lambda t: f(t, True), x), gradient(lambda t: f(t, False), x))  # noqa: B023

    def test_becomes_hard_as_the_temperature_falls(self, method):
        x = torch.stack([torch.randperm(9) for _ in range(20)]).double()
        for k in (1, 4, 8):
            soft = method(x, k, method.smallest_temperature)
            hard = method(x, k, method.smallest_temperature, hard=True)
            torch.testing.assert_close(soft, hard, rtol=0, atol=1e-4)

    def test_softer_with_temperature(self, method):
        x = random(50, 8)
        spread = [method(x, 3, t).var(-1).mean() for t in (0.1, 1.0, 10.0)]
        assert spread[0] > spread[1] > spread[2]

    def test_shift_changes_nothing(self, method):
        x = random(4, 7)
        assert_near(method(x + 1000, 3), method(x, 3), factor=1e3)  # the sum rounds

    def test_a_far_element_does_not_blur_the_others(self, method):
        """float32 keeps what is in question, not what is beyond it: an element that is forced in, or out."""
        x = torch.randn(4, 6)
        for far, k in ((1e9, 3), (-1e9, 2)):
            y = method(torch.cat([x, torch.full((4, 1), far)], 1), k, 0.2, hard=False)
            assert_near(y[:, 6], torch.full((4,), float(far > 0)))
            if method.same_when_masked and not method.random:
                assert_near(y[:, :6], method(x, 2, 0.2))

    def test_masked_elements_are_never_members(self, method):
        x = random(5, 8)
        x[:, 2] = -INF
        x[0, 5:] = -INF
        for hard in (False, True):
            leaf = x.clone().requires_grad_()
            for temperature in (0.5, torch.full((5, 1), 0.5, dtype=torch.float64, requires_grad=True)):
                y = method(leaf, 3, temperature, hard=hard)
                assert (y[x == -INF] == 0).all()
                assert_near(y.sum(-1), torch.full((5,), 3.0).double(), factor=10)
                y.square().sum().backward()
                assert (leaf.grad[x == -INF] == 0).all()
                assert leaf.grad.isfinite().all()
                if isinstance(temperature, torch.Tensor):
                    assert temperature.grad.isfinite().all()
        if method.same_when_masked and not method.random:
            present = x[1:][:, [0, 1, 3, 4, 5, 6, 7]]
            assert_near(method(x, 3)[1:][:, [0, 1, 3, 4, 5, 6, 7]], method(present, 3))

    def test_where_k_are_present_they_are_the_members(self, method):
        x = random(3, 6).index_fill(1, torch.tensor([1, 2, 4]), -INF)
        for hard in (False, True):
            y = method(x, 3, hard=hard)
            torch.testing.assert_close(y, (x > -INF).double(), rtol=0, atol=1e-11)
            slope = gradient(lambda t: method(t, 3, hard=hard), x)  # noqa: B023
            torch.testing.assert_close(slope, torch.zeros_like(x), rtol=0, atol=1e-9)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_extreme_logits(self, method, dtype):
        rows = [
            [1e4, -1e4, 1e4, 0.0, -1e4, 5.0],
            [1e30, -1e30, 0.0, 1e-30, 1.0, -1.0],
            [0.0] * 6,
            [1e4, 1e4, 1e4, 1e4, 1e4, -1e4],
            [-INF, -INF, -1e4, 1e4, 1e38, -1e38],
            [1e-45, -1e-45, 0.0, -0.0, 2e-38, 1.0],
        ]
        for temperature in (1e-300, 1e-30, 1.0, 1e30):
            x = torch.tensor(rows, dtype=dtype, requires_grad=True)
            for k in (1, 2, 4):
                for hard in (False, True):
                    y = method(x, k, temperature, hard=hard)
                    assert_near(y.sum(-1), torch.full((6,), float(k)), dtype=dtype, factor=1e2)
                    (slope,) = torch.autograd.grad(y.square().sum(), x)
                    assert not slope.isnan().any()
                    assert slope.isfinite().all() or temperature < 1  # 1 / temperature overflows


@deterministic
class TestRelaxation:
    def test_permutation_equivariance(self, method):
        if not method.equivariant:
            return
        x, order = random(4, 9), torch.randperm(9)
        assert_near(method(x[:, order], 4), method(x, 4)[:, order])
        f = lambda t: method(t, 4).sin()  # noqa: E731
        weights = torch.arange(9.0)
        one = jacrev(lambda t: (f(t) * weights).sum())(x)
        other = jacrev(lambda t: (f(t) * weights[order]).sum())(x[:, order])
        assert_near(other, one[:, order], order=1)

    def test_ties_share(self, method):
        if not method.equivariant or method.name == "softsort_topk":  # which shares by symmetry of the matrix only
            return
        y = method(torch.tensor([1.0, 0.0, 1.0, 1.0, -2.0]).double(), 2)
        assert_near(y[2:4], y[0].expand(2))

    def test_order_is_kept(self, method):
        if not method.increasing:
            return
        x = random(20, 9).sort(-1).values
        for k in (1, 4, 8):
            assert (method(x, k).diff(dim=-1) >= -1e-12).all()

    @settings(deadline=None, max_examples=25)
    @given(data=st.data())
    def test_any_numbers(self, method, data):
        n = data.draw(st.integers(1, 12))
        numbers = (
            st.floats(-(2.0**100), 2.0**100, width=32)
            | st.sampled_from([0.0, 1.0, -1.0, 1e-40, 3.0])
            | st.floats(-4, 4, width=32)
        )
        x = torch.tensor(data.draw(st.lists(numbers, min_size=n, max_size=n)))
        k = data.draw(st.integers(0, n))
        temperature = data.draw(st.sampled_from([1e-20, 0.1, 1.0, 1e4]))
        y = method(x, k, temperature)
        assert y.isfinite().all()
        assert abs(y.double().sum().item() - k) <= 1e-4 * max(k, 1)
        assert (y >= 0).all()


@smooth
class TestGradients:
    def test_first_and_second(self, method):
        x = random(2, 5).requires_grad_()
        temperature = torch.tensor([[0.7], [1.3]], dtype=torch.float64).requires_grad_()
        for k in (1, 2, 4):
            f = lambda t, s, k=k: method(t, k, s)  # noqa: E731
            assert gradcheck(f, (x, temperature))
            assert gradgradcheck(f, (x, temperature))

    def test_masked(self, method):
        x = random(2, 6)
        f = lambda t: method(torch.where(torch.arange(6) == 3, -INF, t), 2)  # noqa: E731
        assert gradcheck(f, x.requires_grad_())
        assert gradgradcheck(f, x)

    def test_hard_twice(self, method):
        """The second derivative of hard=True is the relaxation's."""
        x = random(5)

        def second(hard):
            leaf = x.clone().requires_grad_()
            y = method(leaf, 2, hard=hard)
            (first,) = torch.autograd.grad((y * torch.arange(5.0)).sum(), leaf, create_graph=True)
            if not first.requires_grad:  # piecewise linear
                return torch.zeros_like(x)
            return torch.autograd.grad(first.square().sum(), leaf)[0]

        assert_near(second(True), second(False), order=2)


@softness
@each
class TestTransforms:
    def test_vmap(self, method, hard):
        x = random(3, 4, 6)
        if method.random or method.samples:
            y = vmap(lambda t: method(t, 2, hard=hard, seed=None), randomness="different")(x)
            assert_near(y.sum(-1), torch.full((3, 4), 2.0).double(), factor=10)
            return
        assert_near(vmap(lambda t: method(t, 2, hard=hard))(x), method(x, 2, hard=hard), factor=10)
        assert_near(
            vmap(lambda t: method(t, 2, hard=hard), in_dims=1)(x), method(x, 2, hard=hard).movedim(1, 0), factor=10
        )
        assert_near(vmap(vmap(lambda t: method(t, 2, hard=hard)))(x), method(x, 2, hard=hard), factor=10)

    def test_grad(self, method, hard):
        x = random(3, 6)
        f = lambda t: (method(t, 2, hard=hard).sin() * torch.arange(6.0)).sum()  # noqa: E731
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(f(leaf), leaf)
        if method.random:
            return  # noise under a transform is drawn otherwise
        if not (method.samples and hard):
            assert_near(grad(f)(x), expected, order=1)
            per_sample = vmap(grad(f), randomness="different")(x)
            assert_near(per_sample, expected, order=1, factor=10)
            assert_near(jacrev(grad(f))(x).reshape(18, 18), torch.autograd.functional.hessian(f, x).reshape(18, 18),
                        order=2, factor=10)  # fmt: skip

    def test_rows_that_go_unchecked_are_nan(self, method, hard):
        x = random(4, 5)
        x[1] = -INF
        x[2, 3] = math.nan
        x[3, :4] = -INF
        y = vmap(lambda t: method(t, 2, hard=hard, seed=None), randomness="different")(x)
        assert y[1:].isnan().all()
        assert y[0].isfinite().all()

    @pytest.mark.filterwarnings("ignore:.*is deprecated")
    def test_compile(self, method, hard):
        if not dl.build_info()["compiled"]:
            pytest.skip("the plain-PyTorch path of the networks builds its tables in NumPy")
        torch.compiler.reset()
        x = random(3, 6).requires_grad_()
        f = lambda t: method(t, 2, 0.7, hard=hard, seed=None)  # noqa: E731
        y = torch.compile(f, fullgraph=True, backend="aot_eager")(x)
        (slope,) = torch.autograd.grad(y.square().sum(), x)
        assert_near(y.sum(-1), torch.full((3,), 2.0).double(), factor=10)
        assert slope.isfinite().all()
        if not (method.random or (method.samples and hard)):
            expected = f(x)
            assert_near(y, expected)
            assert_near(slope, torch.autograd.grad(expected.square().sum(), x)[0], order=1)

    @pytest.mark.filterwarnings("ignore:.*is deprecated")
    def test_compile_with_changing_shapes(self, method, hard):
        if method.name == "network_topk" or hard != method.samples:
            return  # the networks' own tests do this; and once is enough
        torch.compiler.reset()
        f = torch.compile(
            lambda t: method(t, 2, hard=hard, seed=None), fullgraph=True, backend="aot_eager", dynamic=True
        )
        for shape in ((3, 6), (4, 9)):
            assert_near(f(random(*shape)).sum(-1), torch.full(shape[:1], 2.0).double(), factor=10)

    def test_autocast(self, method, hard):
        x = random(3, 6, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = method(x, 2, hard=hard)
        assert_identical(y, method(x, 2, hard=hard))


@each
class TestModules:
    def test_same_as_the_function(self, method):
        x = random(3, 6)
        for hard in (False, True):
            module = method.module(2, 0.5, hard=hard, dim=-1, **method.options)
            y = module(x, generator=torch.Generator().manual_seed(0))
            assert_identical(y, method(x, 2, 0.5, hard=hard, **method.options))
            turned = method.module(2, 0.5, hard=hard, dim=0, **method.options)
            assert_identical(turned(x.T, generator=torch.Generator().manual_seed(0)), y.T)
            assert "k=2" in repr(module)
            assert f"hard={hard}" in repr(module)
            assert_identical(copy.deepcopy(module)(x, generator=torch.Generator().manual_seed(0)), y)
            assert not list(module.parameters())

    def test_schedules_and_tensors(self, method):
        x, schedule = random(3, 6), schedules.Exponential(2.0, 0.5, steps=2)
        module = method.module(2, schedule, hard=False)
        for _ in range(3):
            y = module(x, generator=torch.Generator().manual_seed(0))
            assert_identical(y, method(x, 2, schedule.value))
            schedule.step()
        module = method.module(2, torch.tensor([[0.5], [1.0], [2.0]]).double(), hard=False)
        assert "fixed_temperature" in module.state_dict()
        assert_identical(module(x, generator=torch.Generator().manual_seed(0)), method(x, 2, module.fixed_temperature))


WRONG = [
    (TypeError, "logits", r"torch\.Tensor, got list", lambda f: f([1.0], 1)),
    (TypeError, "logits", r"floating-point dtype, got int64", lambda f: f(torch.ones(3).long(), 1)),
    (ValueError, "logits", r"at least one dimension", lambda f: f(torch.tensor(1.0), 1)),
    (ValueError, "logits", r"not contain NaN, got 1", lambda f: f(torch.tensor([1.0, math.nan]), 1)),
    (ValueError, "logits", r"not contain \+inf, got 1", lambda f: f(torch.tensor([1.0, INF]), 1)),
    (ValueError, "logits", r"leave something to choose", lambda f: f(torch.full((2, 3), -INF), 1)),
    (ValueError, "k", r"at most the number of elements that are not masked.*2 are present",
     lambda f: f(torch.tensor([[1.0, 2.0, 3.0, 0.0], [1.0, -INF, -INF, 0.0]]), 3)),
    (ValueError, "temperature", r"\(0, .*got 0", lambda f: f(torch.ones(3), 1, 0.0)),
    (ValueError, "temperature", r"\(0, .*got -1", lambda f: f(torch.ones(3), 1, -1.0)),
    (ValueError, "temperature", r"got nan", lambda f: f(torch.ones(3), 1, math.nan)),
    (TypeError, "temperature", r"a number, got str", lambda f: f(torch.ones(3), 1, "1")),
    (ValueError, "temperature", r"positive and finite everywhere", lambda f: f(torch.ones(3), 1, torch.tensor(-1.0))),
    (ValueError, "temperature", r"keepdim form", lambda f: f(torch.ones(2, 3), 1, torch.ones(3))),
    (ValueError, "dim", r"in \[-1, 0\]", lambda f: f(torch.ones(3), 1, dim=1)),
    (TypeError, "dim", r"an integer", lambda f: f(torch.ones(3), 1, dim=0.5)),
    (TypeError, "hard", r"True or False, got int", lambda f: f(torch.ones(3), 1, hard=1)),
    (TypeError, "generator", r"torch\.Generator or None, got int", lambda f: f(torch.ones(3), 1, generator=0)),
]  # fmt: skip
INTEGER_K = [
    (ValueError, r"in \[0, 3\], got 4", 4),
    (ValueError, r"in \[0, 3\], got -1", -1),
    (TypeError, r"an integer, got float", 1.5),
    (TypeError, r"an integer, got bool", True),
    (TypeError, r"an integer, got str", "2"),
]


@each
class TestBadInput:
    @pytest.mark.parametrize(
        ("error", "argument", "shown", "call"), WRONG, ids=lambda v: v if isinstance(v, str) else ""
    )
    def test_arguments(self, method, error, argument, shown, call):
        with pytest.raises(
            error, match=rf"^difflayers\.subsets\.{method.name}: argument '{argument}' must .*{shown}"
        ) as e:
            call(method.function)
        assert "\n" not in str(e.value)

    def test_k(self, method):
        if method.name == "lapsum_topk":
            return  # takes real numbers; see its own tests
        for error, shown, k in INTEGER_K:
            with pytest.raises(error, match=rf"^difflayers\.subsets\.{method.name}: argument 'k' must be {shown}"):
                method.function(torch.ones(3), k)

    def test_modules(self, method):
        name = method.module.__name__
        for error, argument, call in (
            (ValueError, "k", lambda m: m(-1)),
            (TypeError, "k", lambda m: m("2")),
            (ValueError, "temperature", lambda m: m(1, 0.0)),
            (TypeError, "dim", lambda m: m(1, dim=None)),
            (TypeError, "hard", lambda m: m(1, hard=0)),
        ):
            with pytest.raises(error, match=rf"^difflayers\.subsets\.{name}: argument '{argument}' must"):
                call(method.module)

    def test_options_are_keyword_only(self, method):
        with pytest.raises(TypeError, match="positional"):
            method.function(torch.ones(3), 1, 1.0, True)
