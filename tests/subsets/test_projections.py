"""Projections onto the permutahedron: against SciPy and a min-max formula, their gradients, transforms and limits."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression
from torch.autograd import forward_ad
from torch.autograd.gradcheck import gradcheck, gradgradcheck
from torch.library import opcheck

import difflayers as dl
from difflayers import _ops, subsets
from difflayers.schedules import Exponential
from difflayers.subsets import isotonic
from tests.tolerances import assert_identical, assert_near

compiled = pytest.mark.skipif(not _ops.COMPILED, reason="the kernels are not compiled in")
quiet_compiler = [  # torch's own, while tracing
    pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


def topk(x, temperature=1.0, *, k=2, **settings):
    return subsets.projection_topk(x, min(k, x.shape[settings.get("dim", -1)]), temperature, **settings)


FUNCTIONS = {"sort": subsets.soft_sort, "rank": subsets.soft_rank, "topk": topk}
each_function = pytest.mark.parametrize("name", FUNCTIONS)
each_regularization = pytest.mark.parametrize("regularization", ["l2", "kl"])


def every(f):
    return each_function(each_regularization(f))


@pytest.fixture(params=["kernel", "no kernel"])
def path(request, monkeypatch):
    """Runs the test with the kernels and without."""
    if request.param == "kernel":
        if not _ops.COMPILED:
            pytest.skip("the kernels are not compiled in")
    else:
        monkeypatch.setattr(_ops, "has_kernel", lambda op, device: False)
    return request.param


def entropic_regression(a, b):
    """The decreasing v_i = min over j <= i of the max over l >= i of LSE(a[j..l]) - LSE(b[j..l])."""
    smallest = np.full(len(a), np.inf)
    for j in range(len(a)):
        values = np.logaddexp.accumulate(a[j:]) - np.logaddexp.accumulate(b[j:])
        smallest[j:] = np.minimum(smallest[j:], np.maximum.accumulate(values[::-1])[::-1])
    return smallest


def projected(a, b, kl):
    """Of `a` onto the permutahedron of `b`, both descending."""
    if not kl:
        return a - isotonic_regression(a - b, increasing=False).x
    return a - entropic_regression(a, b)


def expected(name, x, temperature=1.0, regularization="l2", k=2):
    """Of one row, a NumPy array in float64."""
    n, kl = len(x), regularization == "kl"
    if n == 0:
        return x
    w = np.arange(n, 0, -1.0)
    if name == "sort":
        return -projected(w / temperature, np.sort(-x)[::-1], kl)
    order = np.argsort(-x, kind="stable")
    if name == "topk":
        w = (np.arange(n) < k).astype(float)
    a = x[order] / temperature
    if not kl:
        out = projected(a, w, kl)
    else:
        with np.errstate(divide="ignore"):
            b = np.log(w)
        out = np.exp(projected(a, b, kl))
    result = np.empty(n)
    result[order] = out
    return result


def reference(name, x, temperature=1.0, regularization="l2", **more):
    rows = [expected(name, row.double().numpy(), temperature, regularization, **more) for row in x]
    return torch.from_numpy(np.stack(rows))


@every
@pytest.mark.parametrize("temperature", [1e-3, 0.3, 1.0, 5.0, 1e3])
def test_values(name, regularization, temperature, path):
    for n in (1, 2, 3, 5, 8, 23):
        x = torch.randn(4, n, dtype=torch.float64)
        y = FUNCTIONS[name](x, temperature, regularization=regularization)
        assert_near(y, reference(name, x, temperature, regularization, **({"k": min(2, n)} if name == "topk" else {})))


@compiled
@every
def test_long_rows_against_the_reference(name, regularization):
    """Beyond 64 elements the kernel sorts differently."""
    for n, dtype in itertools.product((64, 65, 150), (torch.float32, torch.float64)):
        x = torch.randn(1, n, dtype=dtype)
        for temperature in (0.02, 1.0, 20.0):
            y = FUNCTIONS[name](x, temperature, regularization=regularization)
            assert_near(y, reference(name, x, temperature, regularization))


@every
def test_ties(name, regularization, path):
    rows = [[0.0, -0.0, 0.0, -0.0], [1.0, 1.0, 1.0, 1.0], [2.0, 1.0, 2.0, 1.0], [3.0, 2.0, 1.0, 0.0]]
    x = torch.tensor(rows, dtype=torch.float64)
    for temperature in (0.1, 1.0, 10.0):
        y = FUNCTIONS[name](x, temperature, regularization=regularization)
        assert_near(y, reference(name, x, temperature, regularization))
    assert_near(subsets.soft_rank(x[1], regularization=regularization), torch.full((4,), 2.5).double())


def test_sparse_membership_by_its_optimality_conditions():
    x = torch.randn(50, 20, dtype=torch.float64)
    for k, temperature in itertools.product((1, 3, 19), (0.1, 1.0, 10.0)):
        m = subsets.projection_topk(x, k, temperature)
        assert_near(m.sum(1), torch.full((50,), float(k)).double())
        z = x / temperature
        inside = (m > 1e-9) & (m < 1 - 1e-9)
        shift = torch.where(inside, z - m, torch.nan).nanmean(1, keepdim=True)
        fractional = inside.any(1)
        assert_near(m[fractional], (z - shift).clamp(0, 1)[fractional])
        for row in range(50):  # whole numbers: every member scores at least 1 more than every other
            if not fractional[row]:
                assert (z[row][m[row] > 0.5].min() - 1 >= z[row][m[row] < 0.5].max()) or k == 20


def test_entropic_membership_of_one_is_softmax():
    x = torch.randn(7, 30, dtype=torch.float64)
    assert_near(subsets.projection_topk(x, 1, 0.5, regularization="kl"), (x / 0.5).softmax(1))
    m = subsets.projection_topk(x, 5, 0.5, regularization="kl")
    free = m < 1 - 1e-9
    scale = torch.where(free, m / (x / 0.5).exp(), torch.nan)
    c = scale.nanmean(1, keepdim=True)
    assert_near(m, torch.minimum(torch.ones(()).double(), c * (x / 0.5).exp()))


@pytest.mark.parametrize("regularization", ["l2", "kl"])
def test_membership_of_none_and_of_all(regularization, path):
    x = torch.randn(3, 5)
    assert_identical(topk(x, k=0, regularization=regularization), torch.zeros(3, 5))
    assert_near(topk(x, k=5, regularization=regularization), torch.ones(3, 5))


def test_torchsort():
    torchsort = pytest.importorskip("torchsort")
    for n, temperature, regularization in itertools.product((5, 40), (0.05, 1.0, 30.0), ("l2", "kl")):
        x, g = torch.randn(3, n, dtype=torch.float64), torch.randn(3, n, dtype=torch.float64)
        for name in ("soft_sort", "soft_rank"):
            results = []
            for f, settings_ in (
                (getattr(subsets, name), {"temperature": temperature}),
                (getattr(torchsort, name), {"regularization_strength": temperature}),
            ):
                leaf = x.clone().requires_grad_()
                y = f(leaf, regularization=regularization, **settings_)
                results.append((y, torch.autograd.grad(y, leaf, g)[0]))
            assert_near(results[0][0], results[1][0])
            assert_near(results[0][1], results[1][1], order=1, factor=10)


class TestLimits:
    """Where torchsort is wrong."""

    @every
    def test_entropic_gradients_stay_finite(self, name, regularization):
        """Beyond |x| / temperature = 88 an unshifted exp overflows in float32."""
        for offset, temperature in ((0.0, 1e-4), (1e4, 1.0), (-1e4, 1.0), (0.0, 1e-30), (0.0, 1e30)):
            x = (torch.randn(3, 9) + offset).requires_grad_()
            y = FUNCTIONS[name](x, temperature, regularization=regularization)
            (g,) = torch.autograd.grad(y.square().sum(), x)
            assert y.isfinite().all()
            assert g.isfinite().all()
            leaf = x.detach().double().requires_grad_()
            exact = FUNCTIONS[name](leaf, temperature, regularization=regularization)
            assert_near(y, exact, dtype=torch.float32)
            assert_near(g, torch.autograd.grad(exact.square().sum(), leaf)[0], order=1, dtype=torch.float32)

    @every
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_of_long_rows(self, name, regularization, dtype):
        x = torch.randn(2, 4096).to(dtype).requires_grad_()
        y = FUNCTIONS[name](x, 0.1, regularization=regularization)
        (g,) = torch.autograd.grad(y.float().sum(), x)
        assert y.dtype == g.dtype == dtype
        assert_identical(y, FUNCTIONS[name](x.float(), 0.1, regularization=regularization).to(dtype))
        if name == "sort":
            assert (y.diff() >= 0).all()

    @every
    @pytest.mark.parametrize("temperature", [1.0, 1e-2, 1e-4])
    def test_error_in_single_precision(self, name, regularization, temperature):
        x = torch.randn(1, 10_000).requires_grad_()
        wide = x.detach().double().requires_grad_()
        more = {"k": 100} if name == "topk" else {}
        y, exact = (FUNCTIONS[name](v, temperature, regularization=regularization, **more) for v in (x, wide))
        g = torch.randn(1, 10_000)
        assert ((y - exact).abs().max() <= 1e-6 * exact.abs().max()).item()
        found, wanted = torch.autograd.grad(y, x, g)[0], torch.autograd.grad(exact, wide, g.double())[0]
        assert ((found - wanted).abs().max() <= 1e-6 * wanted.abs().max()).item()

    @each_function
    @pytest.mark.parametrize(("regularization", "n"), [("l2", 10_000), ("kl", 1_000)])
    def test_single_precision_against_the_reference(self, name, regularization, n):
        x = torch.randn(1, n)
        for temperature in (1e-4, 1.0, 1e4):
            y = FUNCTIONS[name](x, temperature, regularization=regularization)
            exact = reference(name, x, temperature, regularization)
            assert ((y - exact).abs().max() <= 1e-5 * exact.abs().max()).item()

    def test_sorted_values_in_double_precision_at_low_temperature(self):
        """Nothing cancels: against SciPy in exact-enough numbers, the groups being all singletons."""
        x = torch.randn(1, 10_000, dtype=torch.float64)
        for regularization in ("l2", "kl"):
            assert_identical(subsets.soft_sort(x, 1e-4, regularization=regularization), x.sort().values)

    @every
    def test_denormal_temperature(self, name, regularization):
        """Its inverse would be infinite."""
        x = torch.tensor([2.0, 2.0, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
        y = FUNCTIONS[name](x, 5e-324, regularization=regularization)
        assert_near(y, FUNCTIONS[name](x, 1e-12, regularization=regularization))
        y[3].backward()
        assert x.grad is not None
        assert not x.grad.isnan().any()

    @every
    def test_double_backward(self, name, regularization):
        """Not only right by gradgradcheck: not a silent zero."""
        x = torch.randn(4, dtype=torch.float64, requires_grad=True)
        f = lambda t: FUNCTIONS[name](t, 3.0, regularization=regularization).pow(3).sum()  # noqa: E731
        hessian = torch.autograd.functional.hessian(f, x)
        (first,) = torch.autograd.grad(f(x), x)
        step = 1e-5 * torch.ones(4, dtype=torch.float64) * torch.tensor([1.0, -1.0, 0.5, 2.0])
        leaf = (x.detach() + step).requires_grad_()
        (second,) = torch.autograd.grad(f(leaf), leaf)
        torch.testing.assert_close(hessian @ step, second - first, rtol=1e-3, atol=1e-9)

    @every
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_bad_numbers_raise(self, name, regularization, bad):
        what = "NaN" if math.isnan(bad) else r"\+inf"
        with pytest.raises(
            ValueError, match=rf"^difflayers\.subsets\.\w+: argument '(x|logits)' must not contain {what}"
        ):
            FUNCTIONS[name](torch.tensor([1.0, bad, 0.0]), regularization=regularization)

    def test_singletons_at_the_end(self):
        """An out-of-bounds read of torchsort's CUDA backward: every block a singleton, memory behind it poisoned."""
        x = torch.arange(12.0)[:6].flip(0)[None].requires_grad_()
        y = subsets.soft_rank(x, 1e-3)
        assert_identical(y.detach(), torch.tensor([[6.0, 5, 4, 3, 2, 1]]))
        assert_identical(torch.autograd.grad(y.sum(), x)[0], torch.zeros(1, 6))


@every
class TestGradients:
    def test_gradcheck(self, name, regularization, path):
        for n in (1, 2, 7):
            x = torch.randn(3, n, dtype=torch.float64, requires_grad=True)
            for temperature in (0.2, 2.0):
                f = lambda t, s=temperature: FUNCTIONS[name](t, s, regularization=regularization)  # noqa: E731
                assert gradcheck(f, x)
                assert gradgradcheck(f, x)

    def test_of_temperature(self, name, regularization, path):
        x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
        for low in (0.1, 1.0, 5.0):
            t = (torch.rand(3, 1, dtype=torch.float64) + low).requires_grad_()
            f = lambda x, t: FUNCTIONS[name](x, t, regularization=regularization)  # noqa: E731
            assert gradcheck(f, (x, t))
            assert gradgradcheck(f, (x, t))
            assert gradcheck(lambda t, f=f: f(x.detach(), t), t)
            assert gradcheck(lambda t, f=f: f(x, t.mean()), t)  # one number for all rows, broadcast

    def test_of_temperature_in_single_precision(self, name, regularization):
        """A large offset of the scores must not drown it."""
        x, g = torch.randn(4, 50) + 1000, torch.randn(4, 50)
        found = []
        for dtype in (torch.float32, torch.float64):
            t = torch.full((4, 1), 0.7, dtype=torch.float32).to(dtype).requires_grad_()
            y = FUNCTIONS[name](x.to(dtype), t, regularization=regularization)
            found.append(torch.autograd.grad(y, t, g.to(dtype))[0])
        assert_near(found[0], found[1], order=1, dtype=torch.float32)

    def test_zero_gradient_of_other_outputs(self, name, regularization):
        x = torch.randn(2, 5, requires_grad=True)
        y = FUNCTIONS[name](x, regularization=regularization)
        (g,) = torch.autograd.grad(y, x, torch.zeros(2, 5))
        assert_identical(g, torch.zeros(2, 5))


@compiled
@every
def test_kernel_is_the_closed_form(name, regularization):
    entropic = regularization == "kl"
    for n, dtype in itertools.product((1, 2, 9, 80), (torch.float32, torch.float64)):
        x = torch.randn(6, n, dtype=dtype)
        x[3] = x[3].round()
        for temperature in (0.05, 1.0, 30.0, torch.rand(6, 1, dtype=dtype) + 0.1):
            k = (n + 1) // 3
            each = temperature if isinstance(temperature, torch.Tensor) else None
            constant = 1.0 if each is not None else temperature
            result, order, starts = _ops.permutahedron(x, each, constant, name, entropic, k)
            order_again, starts_again = isotonic.find_blocks(x, temperature, name, entropic, k)
            assert torch.equal(order.long(), order_again)
            assert torch.equal(starts[:3].long(), starts_again[:3])  # row 3 may be cut differently at exact ties
            assert_near(result, isotonic.closed_form(x, temperature, order, starts, name, entropic, k))
            again = isotonic.closed_form(x, temperature, order, starts_again, name, entropic, k)
            assert_near(result, again)


@compiled
@every
def test_gradients_of_the_kernel_are_those_of_the_closed_form(name, regularization):
    for dtype in (torch.float32, torch.float64):
        x, g = torch.randn(5, 40, dtype=dtype), torch.randn(5, 40, dtype=dtype)
        t = torch.rand(5, 1, dtype=dtype) + 0.5
        found = []
        for create_graph in (False, True):  # the kernel, the closed form
            leaves = x.clone().requires_grad_(), t.clone().requires_grad_()
            y = FUNCTIONS[name](*leaves, regularization=regularization)
            found.append(torch.autograd.grad(y, leaves, g, create_graph=create_graph))
        for a, b in zip(*found, strict=True):
            assert_near(a, b, order=1)


@pytest.mark.parametrize("regularization", ["l2", "kl"])
class TestMasked:
    X = torch.tensor([[0.5, -math.inf, 0.4, 0.1, -math.inf], [-math.inf, 1.0, 0.9, 0.2, 0.3]], dtype=torch.float64)

    def test_values_and_gradients(self, regularization, path):
        t = torch.tensor([[0.7], [0.5]], dtype=torch.float64, requires_grad=True)
        x = self.X.clone().requires_grad_()
        m = subsets.projection_topk(x, 2, t, regularization=regularization)
        g = torch.tensor([[1.0, 5.0, -2.0, 0.3, 5.0], [5.0, 1.0, 2.0, 3.0, -4.0]]).double()
        of_x, of_t = torch.autograd.grad(m, (x, t), g)
        for row in range(2):
            here = self.X[row] > -math.inf
            leaf, own = self.X[row][here].requires_grad_(), t[row].detach().requires_grad_()
            alone = subsets.projection_topk(leaf, 2, own, regularization=regularization)
            assert_near(m[row][here], alone)
            by_x, by_t = torch.autograd.grad(alone, (leaf, own), g[row][here])
            assert_near(of_x[row][here], by_x, order=1)
            assert_near(of_t[row], by_t, order=1)
            assert (m[row][~here] == 0).all()
            assert (of_x[row][~here] == 0).all()

    def test_second_derivative(self, regularization):
        here = self.X.isfinite()

        def f(present):
            x = torch.full_like(self.X, -math.inf).masked_scatter(here, present)
            return subsets.projection_topk(x, 2, 0.65, regularization=regularization)

        assert gradgradcheck(f, self.X[here].requires_grad_())

    def test_too_few_present(self, regularization):
        with pytest.raises(ValueError, match=r"argument 'k' must be at most the number of elements that are not mask"):
            subsets.projection_topk(self.X, 4, regularization=regularization)

    def test_sort_and_rank_raise(self, regularization):
        for name in ("soft_sort", "soft_rank"):
            with pytest.raises(ValueError, match=rf"^difflayers.subsets.{name}: argument 'x' must be finite, got 3 "):
                getattr(subsets, name)(self.X, regularization=regularization)


class TestHard:
    def test_is_exact_with_the_relaxed_gradient(self, path):
        x = torch.randn(4, 9, requires_grad=True)
        g = torch.randn(4, 9)
        for k in (0, 1, 4, 9):
            hard = subsets.projection_topk(x, k, 2.0, hard=True)
            exact = torch.zeros(4, 9).scatter(1, x.topk(k).indices, 1.0)
            assert_identical(hard.detach(), exact)
            soft = subsets.projection_topk(x, k, 2.0)
            a, b = (torch.autograd.grad(m, x, g)[0] for m in (hard, soft))
            assert_identical(a, b)

    def test_of_ties_the_first(self):
        m = subsets.projection_topk(torch.tensor([1.0, 2.0, 0.0, -0.0, 2.0, 2.0]), 2, hard=True)
        assert_identical(m, torch.tensor([0.0, 1, 0, 0, 1, 0]))


@every
class TestShapes:
    def test_dim_and_strides(self, name, regularization):
        x = torch.randn(3, 5, 4)
        for dim in (-3, -2, -1, 0, 1, 2):
            y = FUNCTIONS[name](x, 0.7, regularization=regularization, dim=dim)
            moved = FUNCTIONS[name](x.movedim(dim, -1).contiguous(), 0.7, regularization=regularization)
            assert_identical(y, moved.movedim(-1, dim))
        t = torch.rand(3, 1, 4) + 0.5
        y = FUNCTIONS[name](x, t, regularization=regularization, dim=1)
        assert_near(y[2, :, 3], FUNCTIONS[name](x[2, :, 3], t[2, 0, 3].item(), regularization=regularization))

    def test_gradient_with_strides(self, name, regularization):
        g = torch.randn(5, 3).t()
        leaves = torch.randn(5, 3).t().requires_grad_(), None
        (a,) = torch.autograd.grad(FUNCTIONS[name](leaves[0], regularization=regularization), leaves[0], g)
        leaf = leaves[0].detach().contiguous().requires_grad_()
        (b,) = torch.autograd.grad(FUNCTIONS[name](leaf, regularization=regularization), leaf, g.contiguous())
        assert_identical(a, b)

    def test_no_elements_one_element_no_rows(self, name, regularization, path):
        for shape in ((0,), (3, 0), (0, 4), (2, 0, 4), (1,), (3, 1)):
            x = torch.randn(shape, requires_grad=True)
            y = FUNCTIONS[name](x, regularization=regularization)
            assert y.shape == x.shape
            assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape
        one = torch.tensor([3.5])
        y = FUNCTIONS[name](one, regularization=regularization)
        assert y.item() == {"sort": 3.5, "rank": 1.0, "topk": 1.0}[name]

    def test_threads_do_not_matter(self, name, regularization):
        x = torch.randn(300, 40)
        before = torch.get_num_threads()
        results = []
        try:
            for threads in (1, 3):
                torch.set_num_threads(threads)
                leaf = x.clone().requires_grad_()
                y = FUNCTIONS[name](leaf, regularization=regularization)
                results.append((y.detach(), torch.autograd.grad(y.square().sum(), leaf)[0]))
        finally:
            torch.set_num_threads(before)
        for a, b in zip(*results, strict=True):
            assert_identical(a, b)

    def test_meta(self, name, regularization):
        y = FUNCTIONS[name](torch.empty(3, 4, device="meta"), regularization=regularization)
        assert (y.shape, y.device.type) == ((3, 4), "meta")

    def test_autocast(self, name, regularization):
        x = torch.randn(3, 8)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = FUNCTIONS[name](x @ torch.eye(8), regularization=regularization)
            assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("regularization", ["l2", "kl"])
def test_descending_is_the_ascending_result_flipped(regularization):
    x = torch.randn(3, 6, 2)
    y = subsets.soft_sort(x, 2.0, regularization=regularization, dim=1)
    flipped = subsets.soft_sort(x, 2.0, regularization=regularization, descending=True, dim=1)
    assert_identical(flipped, y.flip(1))
    r = subsets.soft_rank(x, 2.0, regularization=regularization, dim=1)
    flipped = subsets.soft_rank(x, 2.0, regularization=regularization, descending=True, dim=1)
    assert_identical(flipped, 7 - r)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at the first forward mode
@every
class TestTransforms:
    def test_grad_and_vmap(self, name, regularization, path):
        x = torch.randn(3, 5, dtype=torch.float64)
        f = lambda t: FUNCTIONS[name](t, 1.5, regularization=regularization)  # noqa: E731
        loss = lambda t: f(t).pow(3).sum()  # noqa: E731
        leaf = x.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(loss(leaf), leaf)
        assert_near(torch.func.vmap(f)(x), f(x))
        assert_near(torch.func.vmap(f, in_dims=1, out_dims=1)(x.t()), f(x).t())
        assert_near(torch.func.grad(loss)(x), wanted, order=1)
        assert_near(torch.func.vmap(torch.func.grad(loss))(x), wanted, order=1)
        jacobian = torch.autograd.functional.jacobian(f, x[0])
        assert_near(torch.func.jacrev(f)(x[0]), jacobian, order=1)
        assert_near(torch.func.jacfwd(f)(x[0]), jacobian, order=1)
        hessian = torch.autograd.functional.hessian(loss, x[0])
        assert_near(torch.func.hessian(loss)(x[0]), hessian, order=2)
        assert_near(torch.func.jacrev(torch.func.grad(loss))(x[0]), hessian, order=2)

    def test_over_temperature(self, name, regularization, path):
        x, t = torch.randn(3, 5, dtype=torch.float64), torch.rand(3, 1, dtype=torch.float64) + 0.5
        f = lambda x, t: FUNCTIONS[name](x, t, regularization=regularization)  # noqa: E731
        assert_near(torch.func.vmap(f)(x, t), f(x, t))
        assert_near(torch.func.vmap(f, in_dims=(None, 0))(x[0], t), f(x[:1].expand(3, 5), t))
        by_t = torch.func.vmap(torch.func.grad(lambda t, x: f(x, t).square().sum()))(t, x)
        leaf = t.clone().requires_grad_()
        assert_near(by_t, torch.autograd.grad(f(x, leaf).square().sum(), leaf)[0], order=1)

    def test_forward_mode(self, name, regularization):
        x, v = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
        f = lambda t: FUNCTIONS[name](t, 1.5, regularization=regularization)  # noqa: E731
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(x, v))).tangent
        y, pull = torch.func.vjp(f, x)
        g = torch.randn_like(y)
        assert_near((tangent * g).sum(), (pull(g)[0] * v).sum(), order=1)


@compiled
class TestCompile:
    pytestmark = quiet_compiler

    @pytest.fixture(autouse=True)
    def fresh_compiler(self):
        torch.compiler.reset()

    @every
    def test_values_and_gradients(self, name, regularization):
        t = torch.rand(3, 1, dtype=torch.float64) + 0.5
        for f in (
            lambda x: FUNCTIONS[name](x, 1.5, regularization=regularization),
            lambda x: FUNCTIONS[name](x, t, regularization=regularization),
        ):
            x = torch.randn(3, 6, dtype=torch.float64)
            results = []
            for g in (torch.compile(f, fullgraph=True, backend="aot_eager"), f):
                leaf = x.clone().requires_grad_()
                y = g(leaf)
                results.append((y, torch.autograd.grad(y.pow(3).sum(), leaf)[0]))
            assert_near(results[0][0], results[1][0])
            assert_near(results[0][1], results[1][1], order=1)

    def test_changing_shapes_and_hard(self):
        f = lambda x: subsets.projection_topk(x, 2, 0.5, hard=True)  # noqa: E731
        g = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)
        for shape in ((3, 6), (5, 7), (2, 9)):
            x = torch.randn(shape)
            assert_near(g(x), f(x))

    def test_export(self):
        x = torch.randn(3, 6)
        for module in (subsets.PermutahedronSort(2.0), subsets.ProjectionTopK(2, 3.0)):
            exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},)).module()
            y = torch.randn(5, 6)
            assert_near(exported(y), module(y))

    def test_bad_rows_are_nan(self):
        x = torch.tensor([[1.0, math.nan, 2.0], [1.0, 3.0, 2.0], [-math.inf, 3.0, 2.0], [math.inf, 1.0, 0.0]])
        for name, bad in (("sort", (0, 2, 3)), ("rank", (0, 2, 3)), ("topk", (0, 3))):
            f = lambda x, name=name: FUNCTIONS[name](x, 0.5)  # noqa: E731
            for y in (torch.compile(f, fullgraph=True, backend="aot_eager")(x), torch.func.vmap(f)(x)):
                assert [bool(row.isnan().all()) for row in y] == [i in bad for i in range(4)]
                assert not y[1].isnan().any()

    def test_of_grad_is_never_wrong(self):
        x = torch.randn(3, 6, dtype=torch.float64)
        f = torch.func.grad(lambda t: subsets.soft_rank(t, 2.0, regularization="kl").pow(3).sum())
        wanted = f(x)
        try:
            actual = torch.compile(f, fullgraph=True, backend="aot_eager")(x)
        except (RuntimeError, torch._dynamo.exc.TorchDynamoException):
            return
        assert_near(actual, wanted, order=1)

    @every
    @pytest.mark.parametrize("shape", [(3, 5), (1, 1), (0, 4), (2, 0)])
    def test_opcheck(self, name, regularization, shape):
        entropic, k = regularization == "kl", min(2, shape[1])
        x = torch.randn(shape, dtype=torch.float64)
        for each in (None, torch.rand(shape[0], 1, dtype=torch.float64) + 0.5):
            leaves = [None if v is None else v.clone().requires_grad_() for v in (x, each)]
            opcheck(torch.ops.difflayers.permutahedron, (*leaves, 1.5, name, entropic, k))
            outputs = _ops.permutahedron(x, each, 1.5, name, entropic, k)
            arguments = (torch.randn_like(x), x, each, *outputs, 1.5, name, entropic, each is not None)
            opcheck(torch.ops.difflayers.permutahedron_backward, arguments)


BAD = [
    (TypeError, "x", r"torch\.Tensor, got list", lambda f: f([1.0])),
    (TypeError, "x", r"floating-point dtype, got int64", lambda f: f(torch.ones(3).long())),
    (ValueError, "x", r"at least one dimension, got a scalar", lambda f: f(torch.tensor(1.0))),
    (ValueError, "dim", r"in \[-1, 0\].*got 1", lambda f: f(torch.ones(3), dim=1)),
    (ValueError, "temperature", r"finite number in \(0, .*got 0", lambda f: f(torch.ones(3), 0.0)),
    (ValueError, "temperature", r"finite number in \(0, .*got nan", lambda f: f(torch.ones(3), math.nan)),
    (TypeError, "temperature", r"a number, got str", lambda f: f(torch.ones(3), "1")),
    (ValueError, "temperature", r"positive and finite.*got -1", lambda f: f(torch.ones(3), torch.tensor(-1.0))),
    (ValueError, "temperature", r"broadcastable.*use keepdim form", lambda f: f(torch.ones(2, 3), torch.ones(3))),
    (ValueError, "regularization", r"'l2', 'kl', got 'l1'", lambda f: f(torch.ones(3), regularization="l1")),
    (TypeError, "regularization", r"'l2', 'kl', got int", lambda f: f(torch.ones(3), regularization=2)),
]


@pytest.mark.parametrize(("error", "argument", "shown", "call"), BAD)
@pytest.mark.parametrize("name", ["soft_sort", "soft_rank", "projection_topk"])
def test_bad_arguments(name, error, argument, shown, call):
    function = getattr(subsets, name)
    run = (lambda x, *rest, **more: function(x, 1, *rest, **more)) if name == "projection_topk" else function
    argument = "logits" if (argument, name) == ("x", "projection_topk") else argument
    with pytest.raises(error, match=rf"^difflayers\.subsets\.{name}: argument '{argument}' must .*{shown}"):
        call(run)


def test_bad_arguments_of_one_function():
    x = torch.ones(3)
    for error, argument, call in (
        (ValueError, "k", lambda: subsets.projection_topk(x, 4)),
        (ValueError, "k", lambda: subsets.projection_topk(x, -1)),
        (TypeError, "k", lambda: subsets.projection_topk(x, 1.5)),
        (TypeError, "hard", lambda: subsets.projection_topk(x, 1, hard=1)),
        (TypeError, "generator", lambda: subsets.projection_topk(x, 1, generator=0)),
        (TypeError, "descending", lambda: subsets.soft_sort(x, descending=1)),
        (TypeError, "descending", lambda: subsets.soft_rank(x, descending="yes")),
        (TypeError, "descending", lambda: subsets.PermutahedronSort(descending=1)),
        (ValueError, "regularization", lambda: subsets.PermutahedronRank(regularization="l1")),
        (ValueError, "k", lambda: subsets.ProjectionTopK(-1)),
        (TypeError, "hard", lambda: subsets.ProjectionTopK(1, hard=0)),
    ):
        with pytest.raises(error, match=rf"^difflayers\.subsets\.\w+: argument '{argument}' must"):
            call()


class TestModules:
    def test_are_the_functions(self):
        x = torch.randn(3, 5)
        for regularization in ("l2", "kl"):
            shared = {"regularization": regularization, "dim": 0}
            y = subsets.PermutahedronSort(0.5, descending=True, **shared)(x)
            assert_identical(y, subsets.soft_sort(x, 0.5, descending=True, **shared))
            y = subsets.PermutahedronRank(0.5, descending=True, **shared)(x)
            assert_identical(y, subsets.soft_rank(x, 0.5, descending=True, **shared))
            y = subsets.ProjectionTopK(2, 0.5, hard=True, **shared)(x, generator=torch.Generator())
            assert_identical(y, subsets.projection_topk(x, 2, 0.5, hard=True, **shared))

    def test_learnable_temperature(self):
        module = subsets.ProjectionTopK(2, 5.0, learnable=True)
        module(torch.randn(3, 5)).square().sum().backward()
        (parameter,) = module.parameters()
        assert parameter.grad is not None
        assert parameter.grad.abs() > 0

    def test_schedule(self):
        schedule = Exponential(1.0, 0.1, steps=10)
        module, x = subsets.PermutahedronRank(schedule), torch.randn(4)
        schedule.step()
        assert_identical(module(x), subsets.soft_rank(x, schedule.value))

    def test_repr(self):
        assert repr(subsets.ProjectionTopK(3, hard=True)) == (
            "ProjectionTopK(k=3, temperature=1, dim=-1, regularization='l2', hard=True)"
        )
        assert repr(subsets.PermutahedronSort(0.1, regularization="kl")) == (
            "PermutahedronSort(temperature=0.1, dim=-1, regularization='kl', descending=False)"
        )


finite = st.floats(-(2.0**100), 2.0**100, width=32)
small = st.integers(-3, 3).map(float)
rows = st.lists(finite | small, min_size=1, max_size=12)
temperatures = st.sampled_from([1e-6, 0.1, 1.0, 7.0, 1e6])


@settings(max_examples=200, deadline=None)
@given(rows, temperatures, st.sampled_from(["l2", "kl"]), st.integers(0, 12))
def test_properties(row, temperature, regularization, k):
    x, n = torch.tensor(row), len(row)
    k = min(k, n)
    scale = max(1.0, x.abs().max().item())
    y = subsets.soft_sort(x, temperature, regularization=regularization)
    assert (y.diff() >= -1e-6 * scale).all()
    assert y.min() >= x.min() - 1e-6 * scale or regularization == "kl"
    if regularization == "l2":
        assert abs(y.double().sum() - x.double().sum()) <= 1e-6 * n * scale
    r = subsets.soft_rank(x, temperature, regularization=regularization)
    assert abs(r.double().sum() - n * (n + 1) / 2) <= 1e-5 * n
    m = subsets.projection_topk(x, k, temperature, regularization=regularization)
    assert abs(m.double().sum() - k) <= 1e-6 * max(k, 1)
    assert (m >= 0).all()
    assert (m <= 1).all()
    order = x.argsort(stable=True)
    for result in (r, m):  # never in the wrong order
        assert (result[order].diff() >= -1e-5).all()
    for task, result in (("sort", y), ("rank", r), ("topk", m)):  # the search without a kernel
        entropic = regularization == "kl"
        order, starts = isotonic.find_blocks(x[None], temperature, task, entropic, k)
        assert_near(isotonic.closed_form(x[None], temperature, order, starts, task, entropic, k)[0], result)
    shuffle = torch.randperm(n)
    assert_near(subsets.soft_rank(x[shuffle], temperature, regularization=regularization), r[shuffle])
    assert_near(subsets.soft_sort(x[shuffle], temperature, regularization=regularization), y)


@every
def test_converges_to_the_hard_operation(name, regularization):
    x = torch.randn(5, 9).sort().values[:, torch.randperm(9)]
    hard = {
        "sort": x.sort().values,
        "rank": x.argsort().argsort() + 1.0,
        "topk": torch.zeros(5, 9).scatter(1, x.topk(2).indices, 1.0),
    }[name]
    assert_near(FUNCTIONS[name](x, 1e-9, regularization=regularization), hard)


@compiled
def test_cuda_kernels_are_registered_where_they_are_compiled_in():
    if not dl.build_info()["cuda"]:
        pytest.skip("built without CUDA")
    for op in ("permutahedron", "permutahedron_backward"):
        assert _ops._registered(op, "CUDA")


@pytest.mark.cuda
@every
def test_cuda_is_the_cpu(name, regularization):
    for n, rows_ in ((1, 3), (5, 1), (40, 100), (3000, 2)):
        x, g = torch.randn(rows_, n), torch.randn(rows_, n)
        t = torch.rand(rows_, 1) + 0.5
        results = []
        for device in ("cpu", "cuda"):
            leaves = [v.to(device).requires_grad_() for v in (x, t)]
            y = FUNCTIONS[name](*leaves, regularization=regularization)
            results.append([v.cpu() for v in (y, *torch.autograd.grad(y, leaves, g.to(device)))])
        for a, b in zip(*results, strict=True):
            assert_near(a, b, order=1)
