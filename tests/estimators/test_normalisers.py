"""sparsemax and 1.5-entmax against bisection, and their derivatives of first and second order."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from difflayers import estimators
from tests.tolerances import TOLERANCE, assert_identical, assert_near

FUNCTIONS = {"sparsemax": estimators.sparsemax, "entmax15": estimators.entmax15}
MODULES = {"sparsemax": estimators.Sparsemax, "entmax15": estimators.Entmax15}
HALF = (torch.float16, torch.bfloat16)
INF, NAN = math.inf, math.nan
# torch's own, at the first use of forward mode
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
each = pytest.mark.parametrize("name", FUNCTIONS)


def bisection(name, x):
    """Rows of the last dimension, in float64: halves the interval of the threshold 200 times."""
    z = x.double() if name == "sparsemax" else x.double() / 2
    z = z - z.amax(-1, keepdim=True)
    power = 1 if name == "sparsemax" else 2
    low, high = torch.full_like(z[..., :1], -1.0), torch.zeros_like(z[..., :1])
    for _ in range(200):
        middle = (low + high) / 2
        above = (z - middle).clamp(min=0).pow(power).sum(-1, keepdim=True) >= 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (z - low).clamp(min=0).pow(power)


def random(*shape, scale=1.0):
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class TestValues:
    @each
    @pytest.mark.parametrize("scale", [1e-6, 0.1, 1.0, 10.0, 1e6])
    @pytest.mark.parametrize("n", [1, 2, 5, 300])
    def test_against_bisection(self, name, n, scale):
        x = random(7, n, scale=scale)
        y = FUNCTIONS[name](x)
        assert_near(y, bisection(name, x), factor=max(1.0, scale))
        assert_near(y.sum(1), torch.ones(7, dtype=torch.float64))
        assert (y >= 0).all()

    @each
    def test_every_dim_and_strides(self, name):
        x = random(3, 4, 5)
        for dim in range(-3, 3):
            expected = bisection(name, x.movedim(dim, -1)).movedim(-1, dim)
            assert_near(FUNCTIONS[name](x, dim), expected)
            assert_near(FUNCTIONS[name](x, dim=dim), expected)
            assert_near(FUNCTIONS[name](x.mT.contiguous().mT, dim=dim), expected)
            assert_identical(MODULES[name](dim)(x), FUNCTIONS[name](x, dim))
        assert repr(MODULES[name](0)).endswith("(dim=0)")

    def test_known_values(self):
        x = torch.tensor([0.5, 0.0, -2.0], dtype=torch.float64)
        assert_near(estimators.sparsemax(x), torch.tensor([0.75, 0.25, 0.0]).double())
        for f in FUNCTIONS.values():
            assert_near(f(torch.zeros(4).double()), torch.full((4,), 0.25).double())
            assert_near(f(torch.tensor([3.0, 0.0, -1.0]).double()), torch.tensor([1.0, 0.0, 0.0]).double())
        # 1.5-entmax of (a, 0): (a/2 - t)^2 + t^2 = 1
        t = (0.5 - math.sqrt(2 - 0.25)) / 2
        expected = torch.tensor([(0.5 - t) ** 2, t**2], dtype=torch.float64)
        assert_near(estimators.entmax15(torch.tensor([1.0, 0.0]).double()), expected)

    @each
    def test_masks(self, name):
        x = random(6, 8)
        masked = torch.cat([x[:, :3], torch.full((6, 2), -INF), x[:, 3:]], 1)
        y = FUNCTIONS[name](masked)
        assert (y[:, 3:5] == 0).all()
        assert_near(torch.cat([y[:, :3], y[:, 5:]], 1), FUNCTIONS[name](x))
        one = torch.tensor([-INF, 2.0, -INF])
        assert_identical(FUNCTIONS[name](one), torch.tensor([0.0, 1.0, 0.0]))

    @each
    def test_empty(self, name):
        for shape in ((0,), (3, 0), (0, 4)):
            assert FUNCTIONS[name](torch.zeros(shape)).shape == shape

    @each
    @settings(max_examples=150, deadline=None)
    @given(
        values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=12),
        ties=st.integers(0, 5),
    )
    def test_any_numbers(self, name, values, ties):
        x = torch.tensor(values + values[:1] * ties, requires_grad=True)
        y = FUNCTIONS[name](x)
        assert (y >= 0).all()
        assert_near(y.sum(), torch.tensor(1.0))
        assert_near(y, bisection(name, x.detach()).float(), factor=2)
        order = x.detach().argsort()
        assert (y.detach()[order].diff() >= 0).all()  # monotone
        slope = torch.autograd.grad(y.square().sum(), x)[0]
        assert slope.isfinite().all()
        assert abs(slope.sum()) < 1e-5


class TestPrecision:
    @each
    @pytest.mark.parametrize("dtype", HALF)
    def test_half_is_float32_rounded_once(self, name, dtype):
        x = random(20, 50, scale=2.0).to(dtype)
        y = FUNCTIONS[name](x)
        assert y.dtype == dtype
        assert_identical(y, FUNCTIONS[name](x.float()).to(dtype))

    @each
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
    def test_extreme_numbers(self, name, dtype):
        largest = torch.finfo(dtype).max
        x = torch.tensor([[largest, -largest, 0.0], [-largest, -largest, -INF], [largest, largest, 1.0]], dtype=dtype)
        expected = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]], dtype=dtype)
        leaf = x.requires_grad_()
        y = FUNCTIONS[name](leaf)
        assert_near(y, expected)
        assert torch.autograd.grad(y[:, 0].sum(), leaf)[0].isfinite().all()

    @each
    def test_long_rows_in_float32(self, name):
        for x in (random(2, 100_000), torch.zeros(2, 100_000), random(2, 100_000, scale=1e-5)):
            y = FUNCTIONS[name](x.float())
            assert_near(y.double().sum(1), torch.ones(2, dtype=torch.float64), dtype=torch.float32)
            assert_near(y, bisection(name, x.float()).float())

    @each
    def test_a_dominated_row_keeps_its_digits(self, name):
        """One entry near 1, a thousand just inside the support: 1 - sum of squares would cancel."""
        x = torch.full((1001,), -1.0 if name == "sparsemax" else -2.0)
        x[0] = 0.0
        x[1:] += 1e-4
        assert_near(FUNCTIONS[name](x), bisection(name, x).float())

    @each
    def test_dtype_argument(self, name):
        x = torch.tensor([1, 2, 3])
        y = FUNCTIONS[name](x, dtype=torch.float64)
        assert_identical(y, FUNCTIONS[name](x.double()))
        assert FUNCTIONS[name](torch.randn(3), 0, dtype=torch.bfloat16).dtype == torch.bfloat16


def jacobian(name, y):
    """In closed form, of the result: diag(s) - s s^T / sum(s), s = 1 (sparsemax) or sqrt(p) (entmax) on the support."""
    s = (y > 0).to(y) if name == "sparsemax" else y.sqrt()
    return torch.diag(s) - s[:, None] * s[None, :] / s.sum()


class TestGradients:
    @each
    def test_jacobian(self, name):
        for x in random(5, 7):
            y = FUNCTIONS[name](x)
            expected = jacobian(name, y)
            assert_near(jacrev(FUNCTIONS[name])(x), expected, order=1)
            assert_near(jacfwd(FUNCTIONS[name])(x), expected, order=1)

    @each
    def test_at_a_kink_the_smaller_support_counts(self, name):
        x = torch.tensor([1.0, 0.0] if name == "sparsemax" else [2.0, 0.0], dtype=torch.float64)
        assert_identical(FUNCTIONS[name](x), torch.tensor([1.0, 0.0], dtype=torch.float64))
        assert_identical(jacrev(FUNCTIONS[name])(x), torch.zeros(2, 2, dtype=torch.float64))

    @each
    def test_gradcheck(self, name):
        x = random(4, 6).requires_grad_()
        with torch.no_grad():
            near = (FUNCTIONS[name](x) > 0) != (FUNCTIONS[name](x + 1e-4 * random(4, 6)) > 0)
        assert not near.any()  # no kink nearby
        assert torch.autograd.gradcheck(FUNCTIONS[name], x)
        assert torch.autograd.gradgradcheck(FUNCTIONS[name], x)

    def test_third_derivative_of_entmax(self):
        f = lambda x: (estimators.entmax15(x) ** 2).sum()  # noqa: E731
        x = random(4, scale=0.3)
        third = jacrev(jacrev(grad(f)))(x)
        step = 1e-4
        for i in range(4):
            e = torch.zeros(4).double()
            e[i] = step
            numeric = (hessian(f)(x + e) - hessian(f)(x - e)) / (2 * step)
            torch.testing.assert_close(third[:, :, i], numeric, rtol=1e-5, atol=1e-6)

    @each
    def test_masks(self, name):
        x = random(3, 6)
        x[:, 2] = -INF
        leaf = x.clone().requires_grad_()
        first = torch.autograd.grad(FUNCTIONS[name](leaf).pow(3).sum(), leaf, create_graph=True)[0]
        assert (first[:, 2] == 0).all()
        if first.requires_grad:
            assert torch.autograd.grad(first.square().sum(), leaf)[0].isfinite().all()

    @each
    def test_ties_have_equal_gradients(self, name):
        x = torch.tensor([1.0, 1.0, 0.5, 0.5, -3.0], dtype=torch.float64, requires_grad=True)
        slope = torch.autograd.grad(FUNCTIONS[name](x).square().sum(), x)[0]
        assert_near(slope[0], slope[1])
        assert_near(slope[2], slope[3])

    @each
    def test_transforms(self, name):
        f = FUNCTIONS[name]
        loss = lambda x: (f(x) * torch.arange(5.0)).sum().square()  # noqa: E731
        x = random(4, 5)
        leaf = x.clone().requires_grad_()
        eager = torch.autograd.grad(sum(loss(row) for row in leaf), leaf)[0]
        assert_near(vmap(f)(x), f(x))
        assert_near(vmap(f, in_dims=1)(x.t()), f(x))
        assert_near(vmap(grad(loss))(x), eager, order=1)
        expected = torch.autograd.functional.hessian(loss, x[0])
        assert_near(hessian(loss)(x[0]), expected, order=2)
        tangent = random(4, 5).cos()
        assert_near(
            jvp(f, (x,), (tangent,))[1],
            torch.stack([jacobian(name, f(row)) @ t for row, t in zip(x, tangent, strict=True)]),
            order=1,
        )

    @each
    @pytest.mark.filterwarnings("ignore:.*is deprecated")
    def test_compile(self, name):
        torch.compiler.reset()
        compiled = torch.compile(lambda x: FUNCTIONS[name](x, 0), fullgraph=True, backend="aot_eager")
        x = random(5, 3)
        results = []
        for f in (compiled, lambda x: FUNCTIONS[name](x, 0)):
            leaf = x.clone().requires_grad_()
            y = f(leaf)
            results.append((y, torch.autograd.grad(y.pow(3).sum(), leaf)[0]))
        for order, (actual, expected) in enumerate(zip(*results, strict=True)):
            assert_near(actual, expected, order=order)

    @each
    def test_unchecked_bad_rows_are_nan(self, name):
        x = torch.tensor([[1.0, NAN], [-INF, -INF], [INF, 0.0], [1.0, 2.0]])
        y = vmap(FUNCTIONS[name])(x)
        assert y[:3].isnan().all()
        assert y[3].isfinite().all()
        assert FUNCTIONS[name](x.to("meta")).shape == x.shape


BAD = [
    (TypeError, "x", r"torch\.Tensor, got list", lambda f: f([1.0])),
    (TypeError, "x", r"floating-point dtype, got int64", lambda f: f(torch.ones(3).long())),
    (ValueError, "x", r"at least one dimension, got a scalar", lambda f: f(torch.tensor(1.0))),
    (ValueError, "x", r"not contain NaN, got 1 of them", lambda f: f(torch.tensor([NAN, 1.0]))),
    (ValueError, "x", r"not contain \+inf, got 1 of them", lambda f: f(torch.tensor([INF, 1.0]))),
    (ValueError, "x", r"1 of 2 slices that are -inf throughout", lambda f: f(torch.tensor([[-INF, -INF], [0, 0]]))),
    (ValueError, "dim", r"in \[-1, 0\].*got 1", lambda f: f(torch.ones(3), 1)),
    (TypeError, "dtype", r"floating-point torch\.dtype or None, got torch\.int64",
     lambda f: f(torch.ones(3), dtype=torch.int64)),
]  # fmt: skip


@pytest.mark.parametrize(("error", "argument", "shown", "call"), BAD)
@each
def test_bad_input(name, error, argument, shown, call):
    with pytest.raises(error, match=rf"^difflayers\.estimators\.{name}: argument '{argument}' must .*{shown}"):
        call(FUNCTIONS[name])


def test_against_the_reference_package():
    entmax = pytest.importorskip("entmax")
    x = random(50, 30).float()
    assert_near(estimators.sparsemax(x), entmax.sparsemax(x, dim=-1))
    assert_near(estimators.entmax15(x), entmax.entmax15(x, dim=-1), factor=TOLERANCE[torch.float32][1] / 5e-6)
