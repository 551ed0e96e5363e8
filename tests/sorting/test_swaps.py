"""Conditional swaps: the published sigmoids, their derivatives, and what they claim about themselves."""

import diffsort.functional
import numpy as np
import pytest
import torch
from scipy.stats import norm

import difflayers as dl
from difflayers.sorting.swaps import SWAPS as TABLE
from tests.cases import MONOTONIC, SWAPS
from tests.tolerances import assert_near

each_swap = pytest.mark.parametrize("name", SWAPS)
STEEPNESS = (0.3, 1.0, 10.0)


def published(name, d, s, lam=0.25):
    """The formulas of the papers, in NumPy."""
    v = s * d
    match name:
        case "logistic":
            return 1 / (1 + np.exp(-v))
        case "logistic_art":
            return 1 / (1 + np.exp(-v / (np.abs(d) + 1e-10) ** lam))
        case "gaussian":
            return norm.cdf(v)
        case "reciprocal":
            return 0.5 * (1 + v / (2 + np.abs(v)))
        case "cauchy":
            return np.arctan(v) / np.pi + 0.5
        case "optimal":
            with np.errstate(divide="ignore"):
                return np.where(np.abs(v) <= 0.25, 0.5 + v, np.where(v > 0, 1 - 1 / (16 * v), -1 / (16 * v)))


def tensor(x):
    return torch.as_tensor(x, dtype=torch.float64)


GRID = np.concatenate([-np.logspace(1.4, -6, 300), [0.0], np.logspace(-6, 1.4, 301)])


def through_the_kernel(name, d, s):
    """f(d; s) = the weight of input 0 at output 0 of a two-element sort."""
    d = tensor(d)
    return dl.permutation(torch.stack([torch.zeros_like(d), d], dim=1), swap=name, steepness=s)[:, 0, 0]


@pytest.mark.parametrize("s", STEEPNESS)
@each_swap
def test_value_is_the_published_formula(name, s):
    expected = tensor(published(name, GRID, s))
    assert_near(TABLE[name].value(tensor(GRID), tensor(s)), expected)
    assert_near(through_the_kernel(name, GRID, s), expected)


@pytest.mark.parametrize("s", STEEPNESS)
@each_swap
def test_value_is_that_of_diffsort(name, s):
    a, b = torch.zeros(1, len(GRID), dtype=torch.float64), tensor(GRID)[None]
    identity = torch.eye(2, dtype=torch.float64)
    kind = {"logistic_art": "logistic_phi"}.get(name, name)
    for i in (3, 150, 280, 320, 420, 590):
        pair = torch.stack([a[0, i], b[0, i]])[None]
        split_a, split_b = identity[:1], identity[1:]
        _, matrix = diffsort.functional.execute_sort(
            [(split_a, split_b, identity[:, :1], identity[:, 1:])], pair, steepness=s, distribution=kind
        )
        expected = matrix[0, 0, 0]
        # 1e4: diffsort guards the division in "optimal" by 1e-10
        assert_near(TABLE[name].value(b[0, i], tensor(s)), expected, factor=1e4 if name == "optimal" else 1)


@pytest.mark.parametrize("s", STEEPNESS)
@each_swap
def test_derivative(name, s):
    swap = TABLE[name]
    d = tensor(GRID[np.abs(s * np.abs(GRID) - 0.25) > 1e-3])  # away from the corner of "optimal"
    d = d[d.abs() > 1e-4] if name == "logistic_art" else d  # whose curvature at 0 is that of its 1e-10 guard
    derivative = swap.derivative(d, tensor(s))
    step = 1e-5 * torch.clamp(d.abs(), min=1e-2)
    numeric = (swap.value(d + step, tensor(s)) - swap.value(d - step, tensor(s))) / (2 * step)
    torch.testing.assert_close(derivative, numeric, rtol=1e-5, atol=1e-8)
    variable = d[d != 0].requires_grad_()
    (exact,) = torch.autograd.grad(swap.value(variable, tensor(s)).sum(), variable)
    assert_near(derivative[d != 0], exact, order=1)
    # the comparator's adjoint, e(d) = (1 - f) - d f', is the gradient of the soft minimum by b
    pair = torch.stack([torch.zeros_like(d), d], dim=1).requires_grad_()
    (gradient,) = torch.autograd.grad(dl.sort(pair, swap=name, steepness=s)[:, 0].sum(), pair)
    assert_near(gradient[:, 1], 1 - swap.value(d, tensor(s)) - d * derivative, order=1)


@each_swap
def test_value_can_be_differentiated_at_a_tie(name):
    d = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(TABLE[name].value(d, tensor(3.0)).sum(), d)
    assert_near(slope, TABLE[name].derivative(tensor([0.0]), tensor(3.0)), order=1)


@each_swap
def test_slope_at_zero(name):
    slopes = {
        "logistic": 1 / 4, "logistic_art": 10**2.5 / 4, "gaussian": 1 / np.sqrt(2 * np.pi),
        "reciprocal": 1 / 4, "cauchy": 1 / np.pi, "optimal": 1.0,
    }  # fmt: skip
    for s in STEEPNESS:
        assert_near(TABLE[name].derivative(tensor([0.0]), tensor(s)), tensor([s * slopes[name]]), factor=10)


@each_swap
def test_symmetry_and_tails(name):
    d = tensor(GRID[GRID >= 0])
    for s in STEEPNESS:
        f = TABLE[name].value(d, tensor(s))
        assert torch.equal(TABLE[name].value(-d, tensor(s)), TABLE[name].tail(d, tensor(s)))
        assert_near(f + TABLE[name].value(-d, tensor(s)), torch.ones_like(f))
        assert ((f >= 0.5) & (f <= 1)).all()
        assert (f.diff() >= -1e-16).all()
        assert f[0] == 0.5
    # no cancellation far out: the tail keeps its relative accuracy, or underflows to 0
    far = TABLE[name].tail(tensor([1e12]), tensor(1.0)).item()
    limit = {"reciprocal": 1e-12, "cauchy": 1e-12 / np.pi, "optimal": 1e-12 / 16}.get(name, 0.0)
    assert far == pytest.approx(limit, rel=1e-9, abs=1e-300)


def adjoint(name, d, s):
    swap = TABLE[name]
    return 1 - swap.value(d, s) - d * swap.derivative(d, s)


@each_swap
def test_monotonic_flag(name):
    d = tensor(np.linspace(-60, 60, 200_001))
    lowest = adjoint(name, d, tensor(1.0)).min().item()
    assert TABLE[name].monotonic == (lowest >= -1e-15)
    known = {"logistic": -0.100, "logistic_art": -0.057, "gaussian": -0.129}  # research/sorting.md 1.1
    assert lowest == pytest.approx(known.get(name, 0.0), abs=5e-3)


@each_swap
def test_adjoints_of_both_orders_sum_to_one(name):
    d = tensor(GRID)
    for s in STEEPNESS:
        assert_near(adjoint(name, d, tensor(s)) + adjoint(name, -d, tensor(s)), torch.ones_like(d))


@pytest.mark.parametrize("s", STEEPNESS)
@each_swap
def test_error_bound_is_the_supremum(name, s):
    x = torch.logspace(-4, 9, 400_001, dtype=torch.float64) / s  # up to where the bounded ones are at their limit
    error = x * TABLE[name].tail(x, tensor(s))
    assert error.max().item() == pytest.approx(TABLE[name].error_bound(s), rel=1e-3)
    # and it is the error of a sort of two
    pairs = torch.stack([torch.zeros_like(x), x], dim=1)[::1000]
    assert (dl.sort(pairs, swap=name, steepness=s)[:, 0] <= TABLE[name].error_bound(s) * (1 + 1e-9)).all()


class TestLogisticART:
    @pytest.mark.parametrize("lam", [0.0, 0.1, 0.5, 0.9])
    def test_parameter(self, lam):
        swap, d = dl.swaps.LogisticART(lam), tensor(GRID)
        expected = tensor(published("logistic_art", GRID, 2.0, lam))
        assert_near(swap.value(d, tensor(2.0)), expected)
        assert_near(through_the_kernel(swap, GRID, 2.0), expected)
        x = torch.logspace(-9, 9, 400_001, dtype=torch.float64)
        assert (x * swap.tail(x, tensor(2.0))).max().item() == pytest.approx(swap.error_bound(2.0), rel=1e-3)

    def test_zero_is_logistic(self):
        x = torch.randn(3, 6, dtype=torch.float64)
        assert_near(dl.permutation(x, swap=dl.swaps.LogisticART(0.0)), dl.permutation(x, swap="logistic"))

    def test_default_is_the_named_one(self):
        assert dl.swaps.LogisticART() == TABLE["logistic_art"] == dl.swaps.LogisticART(lam=0.25)
        assert dl.swaps.LogisticART(0.3) != TABLE["logistic_art"]

    @pytest.mark.parametrize("lam", [-0.1, 1.0, float("nan")])
    def test_range(self, lam):
        with pytest.raises(ValueError, match=r"difflayers.swaps.LogisticART: argument 'lam' must be .*got"):
            dl.swaps.LogisticART(lam)


CUSTOM = {
    "logistic": [torch.sigmoid, lambda v: torch.sigmoid(v), lambda d, s: torch.sigmoid(s * d)],
    "cauchy": [lambda v: 0.5 + torch.atan(v) / torch.pi, lambda d, s: 0.5 + torch.atan(s * d) / torch.pi],
    "logistic_art": [lambda d, s: torch.sigmoid(s * d / (d.abs() + 1e-10) ** 0.25)],
}


class TestCustom:
    @pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
    @pytest.mark.parametrize(("name", "f"), [(name, f) for name, fs in CUSTOM.items() for f in fs])
    @pytest.mark.parametrize("function", [dl.sort, dl.permutation, dl.rank])
    def test_equals_the_built_in_one(self, function, name, f, hard):
        x = torch.randn(2, 6, dtype=torch.float64)
        results = []
        for swap in (name, dl.swaps.Custom(f)):
            leaf = x.clone().requires_grad_()
            s = torch.full((2, 1), 3.0, dtype=torch.float64, requires_grad=True)
            y = function(leaf, swap=swap, steepness=s, hard=hard)
            weight = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape)
            first = torch.autograd.grad((y * weight).sum(), (leaf, s), create_graph=True)
            # an error-free payload, the ranks', has no second derivative in the kernels
            twice = not (hard and function is dl.rank)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), (leaf, s)) if twice else ()
            results.append((y, first, second))
        (y, first, second), (custom_y, custom_first, custom_second) = results
        assert_near(custom_y, y)
        for order, (actual, expected) in enumerate([(custom_first, first), (custom_second, second)], start=1):
            for a, b in zip(actual, expected, strict=True):
                assert_near(a, b, order=order)

    def test_can_be_differentiated_a_third_time(self):
        x = torch.randn(4, dtype=torch.float64, requires_grad=True)
        y = dl.sort(x, swap=dl.swaps.Custom(torch.sigmoid))[0]
        for _ in range(3):
            (g,) = torch.autograd.grad(y, x, create_graph=True)
            y = g.square().sum()
        assert g.isfinite().all()
        assert g.abs().max() > 0

    @pytest.mark.parametrize(
        ("error", "f"),
        [
            (TypeError, 3.0),
            (TypeError, lambda v: 0.5),
            (TypeError, lambda v: v.sum()),
            (ValueError, torch.tanh),  # from -1 to 1
            (ValueError, lambda v: torch.sigmoid(-v)),  # falls
            (ValueError, lambda v: torch.sigmoid(v + 1)),  # not symmetric
            (ValueError, lambda v: torch.full_like(v, 0.5)),  # flat
            (ValueError, lambda v: v / 0),  # NaN
        ],
    )
    def test_what_is_not_a_sigmoid_raises(self, error, f):
        with pytest.raises(error, match=r"difflayers.swaps.Custom: argument 'f' must .*got"):
            dl.swaps.Custom(f)


def test_the_table_is_complete():
    assert set(SWAPS) == {"logistic", "logistic_art", "gaussian", "reciprocal", "cauchy", "optimal"}
    assert set(MONOTONIC) == {"reciprocal", "cauchy", "optimal"}
    for name, swap in TABLE.items():
        assert swap.name == name
        assert swap.__doc__
        x = torch.randn(2, 5)
        assert torch.equal(dl.sort(x, swap=swap), dl.sort(x, swap=name))
