"""Steepness: a number, a tensor with a gradient, or relative to each row's spread."""

import math

import pytest
import torch

import difflayers as dl
from tests.cases import FUNCTIONS, SWAPS, name_of
from tests.tolerances import assert_identical, assert_near

each_function = pytest.mark.parametrize("case", FUNCTIONS, ids=name_of)


class TestTensor:
    @each_function
    def test_equals_the_number(self, case):
        x = torch.randn(3, 6, dtype=torch.float64)
        for shape in [(), (1,), (1, 1), (3, 1)]:
            s = torch.full(shape, 3.0, dtype=torch.float64)
            assert_near(case.run(x, steepness=s), case.run(x, steepness=3.0))

    @each_function
    def test_every_row_has_its_own(self, case):
        x, steepness = torch.randn(3, 6), torch.tensor([[1.0], [10.0], [100.0]])
        together = case.run(x, steepness=steepness)
        for i in range(3):
            assert_near(together[i], case.run(x[i], steepness=steepness[i].item()))

    @pytest.mark.parametrize("dim", [0, 1, 2])
    def test_has_size_one_at_dim(self, dim):
        x = torch.randn(2, 3, 4)
        s = torch.rand([1 if d == dim else size for d, size in enumerate(x.shape)]) + 1
        expected = dl.sort(x.movedim(dim, -1), steepness=s.movedim(dim, -1)).movedim(-1, dim)
        assert_identical(dl.sort(x, steepness=s, dim=dim), expected)
        expected = dl.sort_by(x.movedim(dim, -1), torch.ones(x.shape[dim], 1).cumsum(0), steepness=s.movedim(dim, -1))
        assert_identical(dl.sort_by(x, torch.ones(x.shape[dim], 1).cumsum(0), steepness=s, dim=dim), expected)

    @pytest.mark.parametrize(
        ("x", "shape", "dim"),
        [((3, 4), (3,), -1), ((3, 4), (4,), -1), ((3, 4), (3, 4), -1), ((3, 4), (1, 4), -1), ((3, 4), (3, 1), 0),
         ((3, 4), (2, 1), -1), ((4,), (2, 1), -1), ((4, 4), (4,), -1)],
    )  # fmt: skip
    @each_function
    def test_other_shapes_raise(self, case, x, shape, dim):
        with pytest.raises(ValueError, match=r"difflayers\.\w+: argument 'steepness' must be broadcastable .*got"):
            case.run(torch.randn(x), steepness=torch.ones(shape), dim=dim)

    @pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
    @each_function
    def test_only_positive_finite_numbers(self, case, bad):
        x = torch.randn(2, 4)
        rule = r"difflayers\.\w+: argument 'steepness' must be .*(positive|finite).*got"
        with pytest.raises(ValueError, match=rule):
            case.run(x, steepness=bad)
        with pytest.raises(ValueError, match=rule):
            case.run(x, steepness=torch.tensor([[1.0], [bad]]))

    def test_beyond_float32_raises(self):
        with pytest.raises(ValueError, match="steepness"):
            dl.sort(torch.randn(3), steepness=1e300)
        dl.sort(torch.randn(3, dtype=torch.float64), steepness=1e300)

    def test_unchecked_contents_make_the_row_nan(self):
        x, s = torch.randn(3, 4), torch.tensor([[1.0], [-1.0], [math.nan]])
        y = torch.func.vmap(lambda row, steep: dl.sort(row, steepness=steep))(x, s)  # where contents are not looked at
        assert y[0].isfinite().all()
        assert y[1:].isnan().all()

    @pytest.mark.parametrize("swap", SWAPS)
    def test_gradient_against_finite_differences(self, swap):
        x = torch.randn(5, dtype=torch.float64)
        weight = torch.randn(5, 5, dtype=torch.float64)
        f = lambda s: (dl.permutation(x, swap=swap, steepness=s) * weight).sum()  # noqa: E731
        s = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(f(s), s)
        numeric = (f(2.0 + 1e-6) - f(2.0 - 1e-6)) / 2e-6
        torch.testing.assert_close(gradient, numeric, rtol=1e-6, atol=1e-8)

    def test_module_learns_it(self):
        x = torch.randn(64, 5)
        target = dl.sort(x, steepness=40.0)
        module = dl.SortingNetwork(5, steepness=5.0, learnable=True)
        optimiser = torch.optim.Adam(module.parameters(), lr=0.1)
        for _ in range(100):
            optimiser.zero_grad()
            (module(x) - target).square().mean().backward()
            optimiser.step()
        assert abs(module.steepness.item() - 40.0) < 2.0


class TestRelative:
    def test_is_the_factor_over_the_standard_deviation(self):
        x = torch.randn(4, 9, dtype=torch.float64)
        deviation = x.std(1, correction=0, keepdim=True)
        expected = dl.sort(x, steepness=7.0 / deviation)
        assert_near(dl.sort(x, steepness=dl.RelativeSteepness(7.0)), expected)

    @pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e30])
    @each_function
    def test_scale(self, case, scale):
        x = torch.randn(3, 6, dtype=torch.float64)
        s = dl.RelativeSteepness(5.0)
        factor = scale if case.kind == "values" else 1.0
        assert_near(case.run(scale * x, steepness=s) / factor, case.run(x, steepness=s), factor=100)

    @pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -3e38, 1e-38])
    def test_no_spread_is_the_plain_factor(self, value):
        x = torch.full((2, 5), value)
        assert_identical(dl.permutation(x, steepness=dl.RelativeSteepness(5.0)), dl.permutation(x, steepness=5.0))
        assert dl.sort(x, steepness=dl.RelativeSteepness()).isfinite().all()

    @pytest.mark.parametrize("n", [0, 1])
    def test_no_elements(self, n):
        x = torch.randn(2, n)
        assert_identical(dl.sort(x, steepness=dl.RelativeSteepness()), x)

    @each_function
    def test_is_detached(self, case):
        x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
        fixed = 5.0 / x.detach().std(1, correction=0, keepdim=True)
        results = []
        for s in (dl.RelativeSteepness(5.0), fixed):
            y = case.run(x, steepness=s)
            results.append(torch.autograd.grad((y * torch.arange(y.numel()).reshape(y.shape)).sum(), x)[0])
        assert_near(*results, order=1)

    def test_conserves_the_sum(self):
        x = 50 + 3 * torch.randn(4, 9, dtype=torch.float64)
        assert_near(dl.sort(x, steepness=dl.RelativeSteepness()).sum(1), x.sum(1))

    def test_ignores_infinite_and_absent_elements(self):
        x = torch.randn(5)
        s = dl.RelativeSteepness(5.0)
        fixed = 5.0 / x.std(correction=0)
        padded = torch.cat([x, torch.tensor([math.inf])])
        assert_near(dl.sort(padded, steepness=s)[:5], dl.sort(padded, steepness=fixed)[:5])
        mask = torch.tensor([True] * 5 + [False])
        for garbage in (1e6, math.nan, -math.inf):
            filled = torch.cat([x, torch.tensor([garbage])])
            assert_near(dl.sort(filled, steepness=s, mask=mask), dl.sort(filled, steepness=fixed, mask=mask))

    @pytest.mark.parametrize("row", [[3e38, -3e38, 1e38, 0.0], [1e-38, -1e-38, 5e-39, 0.0], [1e-45, 0.0, 3e-45, 7e-45]])
    def test_rows_at_the_ends_of_the_range(self, row):
        x = torch.tensor(row, requires_grad=True)
        for f in (dl.sort, dl.permutation, dl.rank):
            y = f(x, steepness=dl.RelativeSteepness())
            assert y.isfinite().all()
            (gradient,) = torch.autograd.grad(y.sum(), x)
            assert gradient.isfinite().all()

    def test_nan_stays_visible(self):
        x = torch.tensor([[1.0, math.nan, 2.0], [1.0, 0.0, 2.0]])
        y = dl.sort(x, steepness=dl.RelativeSteepness())
        assert y[0].isnan().all()
        assert y[1].isfinite().all()

    @pytest.mark.parametrize("bad", [0.0, -1, math.nan, math.inf, "1", None])
    def test_factor_must_be_positive(self, bad):
        error = ValueError if isinstance(bad, (int, float)) else TypeError
        with pytest.raises(error, match=r"difflayers.RelativeSteepness: argument 'factor' must be .*got"):
            dl.RelativeSteepness(bad)
