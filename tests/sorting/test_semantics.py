"""What the functions promise at the edges: NaN, infinities, ties, extremes, masks, and the hard operation."""

import math

import pytest
import torch

import difflayers as dl
from tests.cases import CASES, FUNCTIONS, LOSSES, MODULES, NETWORKS, SWAPS, name_of
from tests.tolerances import assert_identical, assert_near

INF, NAN = math.inf, math.nan
each_function = pytest.mark.parametrize("case", FUNCTIONS, ids=name_of)
each_network = pytest.mark.parametrize("network", NETWORKS)
each_swap = pytest.mark.parametrize("swap", SWAPS)
softness = pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])


def gradient_of(y, x):
    return torch.autograd.grad((y * torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).reshape(y.shape)).sum(), x)[0]


class TestNaN:
    @softness
    @pytest.mark.parametrize("case", FUNCTIONS + MODULES + LOSSES, ids=name_of)
    def test_spoils_its_row_and_no_other(self, case, hard):
        x = torch.randn(3, 6)
        clean = case.run(x, hard=hard)
        x[1, 4] = NAN
        x.requires_grad_()
        y = case.run(x, hard=hard)
        gradient = gradient_of(y, x)
        assert y[1].isnan().all()
        assert gradient[1].isnan().all()
        for row in (0, 2):
            assert_identical(y[row].detach(), clean[row])
            assert gradient[row].isfinite().all()

    def test_a_pruned_output_sees_it_too(self):
        x = torch.randn(16)
        x[3] = NAN
        for result in (dl.topk(x, 1).values, dl.topk(x, 1).membership, dl.quantile(x, 0.0), dl.median(x)):
            assert result.isnan().all()

    def test_nothing_to_sort(self):
        assert dl.sort(torch.tensor([NAN])).isnan().all()
        assert dl.rank(torch.tensor([NAN])).isnan().all()
        assert dl.permutation(torch.tensor([NAN])).isnan().all()


class TestInfinities:
    row = torch.tensor([0.3, INF, -0.2, -INF, 0.1, INF])

    @softness
    @each_network
    @each_swap
    def test_go_to_the_ends_and_leak_nothing(self, swap, network, hard):
        x = self.row.clone().requires_grad_()
        y = dl.sort(x, swap=swap, network=network, hard=hard)
        assert_identical(y[[0, 4, 5]].detach(), torch.tensor([-INF, INF, INF]))
        assert y[1:4].isfinite().all()
        assert_near(y[1:4].sum(), torch.tensor(0.2))
        (gradient,) = torch.autograd.grad((y[1:4] * torch.tensor([1.0, 3.0, -2.0])).sum(), x)
        assert gradient.isfinite().all()
        assert_identical(gradient[[1, 3, 5]], torch.zeros(3))
        if hard:
            assert_identical(y[1:4].detach(), torch.tensor([-0.2, 0.1, 0.3]))

    @softness
    @each_function
    def test_no_nan_anywhere(self, case, hard):
        x = torch.stack([self.row, -self.row, torch.full((6,), INF), torch.full((6,), -INF)]).requires_grad_()
        y = case.run(x, hard=hard)
        assert not y.isnan().any()
        (gradient,) = torch.autograd.grad(torch.where(y.isfinite(), y, 0.0).sum(), x)
        assert gradient.isfinite().all()

    @softness
    def test_weights_of_infinite_elements_are_zero_or_one(self, hard):
        matrix = dl.permutation(self.row, hard=hard)
        infinite = ~self.row.isfinite()
        assert ((matrix[:, infinite] == 0) | (matrix[:, infinite] == 1)).all()
        assert_near(matrix.sum(0), torch.ones(6))
        assert_near(matrix.sum(1), torch.ones(6))
        assert matrix[0, 3] == 1  # -inf comes first

    @softness
    @each_network
    def test_equal_infinities_count_as_ordered(self, network, hard):
        matrix = dl.permutation(torch.full((5,), INF), network=network, hard=hard)
        assert_identical(matrix, torch.eye(5))

    def test_quantile_at_an_infinite_position(self):
        x = torch.tensor([1.0, INF, 2.0, -INF, 3.0])
        assert dl.quantile(x, 0.0, hard=True) == -INF
        assert dl.quantile(x, 1.0, hard=True) == INF
        assert dl.quantile(x, 0.75, hard=True) == 3.0  # an exact position: 0 * inf of the neighbour is not taken


EXTREMES = {
    "3e38": [3e38, -3e38, 2e38, 0.0, -1e38, 3e38],
    "denormal": [1e-40, -1e-40, 3e-45, 0.0, -3e-45, 2e-42],
    "equal": [0.7] * 6,
    "zero": [0.0, -0.0, 0.0, -0.0, 0.0, 0.0],
    "mixed": [1e30, -1e-30, 1.0, -1e30, 1e-30, 0.0],
}


class TestExtremes:
    @softness
    @pytest.mark.parametrize("steepness", [1e-30, 10.0, 1e30])
    @pytest.mark.parametrize("row", EXTREMES.values(), ids=EXTREMES)
    @each_swap
    def test_finite_results_and_gradients(self, swap, row, steepness, hard):
        for case in FUNCTIONS:
            x = torch.tensor(row).requires_grad_()
            y = case.run(x, swap=swap, steepness=steepness, hard=hard)
            assert y.isfinite().all(), case.name
            (gradient,) = torch.autograd.grad(y.sum(), x)
            assert gradient.isfinite().all(), case.name

    @pytest.mark.parametrize("row", [EXTREMES["3e38"], EXTREMES["mixed"]], ids=["3e38", "mixed"])
    @each_swap
    def test_differences_that_overflow_are_the_exact_swap(self, swap, row):
        x = torch.tensor(row)
        assert_near(dl.sort(x, swap=swap) / 3e38, x.sort().values / 3e38)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    @each_swap
    def test_half_precision_steepness_times_difference_overflows(self, swap, dtype):
        x = torch.tensor([6e4, -6e4, 1.0, 3e4], dtype=dtype, requires_grad=True)
        y = dl.sort(x, swap=swap, steepness=1e4)
        assert y.dtype == dtype
        assert y.isfinite().all()
        assert gradient_of(y, x).isfinite().all()
        assert_near(y, x.sort().values)

    @each_swap
    def test_double_gradients_are_finite(self, swap):
        for row in EXTREMES.values():
            x = torch.tensor(row, dtype=torch.float64, requires_grad=True)
            y = dl.sort(x, swap=swap)
            (first,) = torch.autograd.grad((y * torch.arange(6.0)).sum(), x, create_graph=True)
            (second,) = torch.autograd.grad((first * torch.linspace(-1, 1, 6)).sum(), x)
            assert second.isfinite().all()


class TestTies:
    @softness
    @each_swap
    def test_two_equal_elements_share_the_gradient(self, swap, hard):
        x = torch.tensor([0.5, 0.5], requires_grad=True)
        for output in (0, 1):
            y = dl.sort(x, swap=swap, hard=hard)
            assert_identical(y.detach(), torch.tensor([0.5, 0.5]))
            (gradient,) = torch.autograd.grad(y[output], x)
            assert_near(gradient, torch.tensor([0.5, 0.5]))

    @each_swap
    def test_soft_weights_of_a_tie_are_one_half(self, swap):
        assert_near(dl.permutation(torch.ones(2), swap=swap), torch.full((2, 2), 0.5))
        assert_near(dl.rank(torch.ones(2), swap=swap), torch.full((2,), 1.5))

    @each_network
    def test_hard_ranks_of_ties_are_distinct(self, network):
        x = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
        ranks = dl.rank(x, network=network, hard=True)
        assert_identical(ranks.sort().values, torch.arange(1.0, 6.0))
        assert_identical(ranks[[1, 4]].sort().values, torch.tensor([1.0, 2.0]))

    @each_network
    def test_shares_of_many_ties_are_a_distribution(self, network):
        x = torch.zeros(7, requires_grad=True)
        for i in range(7):
            (gradient,) = torch.autograd.grad(dl.sort(x, network=network)[i], x)
            assert_near(gradient.sum(), torch.tensor(1.0))
            assert (gradient >= 0).all()


class TestDescending:
    @softness
    @each_network
    def test_is_the_ascending_result_flipped(self, network, hard):
        x = torch.randn(3, 7)
        s = {"network": network, "hard": hard}
        assert_identical(dl.sort(x, descending=True, **s), dl.sort(x, **s).flip(-1))
        assert_identical(dl.permutation(x, descending=True, **s), dl.permutation(x, **s).flip(-2))
        assert_near(dl.rank(x, descending=True, **s), 8 - dl.rank(x, **s), factor=10)
        payload = torch.randn(3, 7, 2)
        assert_identical(dl.sort_by(x, payload, descending=True, **s), dl.sort_by(x, payload, **s).flip(-2))

    def test_mask_moves_absent_positions_to_the_front(self):
        x, mask = torch.randn(5), torch.tensor([True, False, True, True, False])
        assert_identical(dl.sort(x, mask=mask, descending=True), dl.sort(x, mask=mask).flip(-1))


class TestHard:
    """hard=True is the discrete operation."""

    @pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 16, 33, 100])
    @each_network
    @each_swap
    def test_sort_permutation_rank(self, swap, network, n):
        x = torch.randn(4, n)
        s = {"swap": swap, "network": network, "hard": True}
        order = x.argsort(-1)
        assert_identical(dl.sort(x, **s), x.sort(-1).values)
        assert_identical(dl.permutation(x, **s), torch.eye(n)[order])
        assert_identical(dl.rank(x, **s), order.argsort(-1) + 1.0)

    @pytest.mark.parametrize("largest", [True, False])
    @pytest.mark.parametrize("k", [0, 1, 3, 9])
    def test_topk(self, k, largest):
        x = torch.randn(2, 9, 3)
        result = dl.topk(x, k, largest=largest, dim=1, hard=True)
        values, indices = x.topk(k, dim=1, largest=largest)
        assert_identical(result.values, values)
        assert_identical(result.membership, torch.zeros_like(x).scatter(1, indices, 1.0))

    @pytest.mark.parametrize("keepdim", [False, True])
    @pytest.mark.parametrize("dim", [0, 1, -1])
    @pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 2 / 3, 1.0, torch.tensor(0.3), torch.tensor([0.0, 0.25, 0.6, 1.0])],
                             ids=str)  # fmt: skip
    def test_quantile(self, q, dim, keepdim):
        for n in (1, 2, 5, 8):
            x = torch.randn(n, n, n)
            actual = dl.quantile(x, q, dim=dim, keepdim=keepdim, hard=True)
            assert_near(actual, torch.quantile(x, q, dim=dim, keepdim=keepdim))

    def test_quantile_of_many_elements(self):
        x = torch.randn(10_007, dtype=torch.float64)
        for q in (0.01, 0.333, 0.9999):
            assert_near(dl.quantile(x, q, hard=True), torch.quantile(x, q))
        assert_near(dl.quantile(x.float(), 0.333, hard=True), torch.quantile(x, 0.333).float())

    @pytest.mark.parametrize("keepdim", [False, True])
    def test_median_odd_and_even(self, keepdim):
        x = torch.randn(4, 5)
        assert_identical(dl.median(x, keepdim=keepdim, hard=True), x.median(-1, keepdim=keepdim).values)
        y = torch.tensor([4.0, 1.0, 3.0, 2.0])
        assert dl.median(y, hard=True) == 2.5

    @pytest.mark.parametrize("descending", [False, True])
    def test_sort_by_is_gather_and_inverse_undoes_it(self, descending):
        x, payload = torch.randn(3, 6), torch.randn(3, 6, 4)
        index = x.argsort(-1, descending=descending)[..., None].expand_as(payload)
        s = {"descending": descending, "hard": True}
        forth = dl.sort_by(x, payload, **s)
        assert_identical(forth, payload.gather(1, index))
        assert_identical(dl.sort_by(x, forth, inverse=True, **s), payload)

    def test_sort_by_is_the_matrix_product(self):
        x, payload = torch.randn(2, 1, 6), torch.randn(3, 6, 4)  # batch dimensions broadcast
        for s in ({}, {"hard": True}, {"steepness": 2.0}):
            matrix = dl.permutation(x, **s)
            assert_near(dl.sort_by(x, payload, **s), matrix @ payload)
            assert_near(dl.sort_by(x, payload, inverse=True, **s), matrix.mT @ payload)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_converges_to_the_hard_operation(case):
    x = torch.stack([torch.randperm(7), torch.randperm(7)]).double()
    exact = case.run(x, hard=True)
    errors = [(case.run(x, steepness=s) - exact).abs().max().item() for s in (1e2, 1e4, 1e6)]
    assert errors[0] > errors[1] > errors[2] or errors[0] == 0
    if "CrossEntropy" not in case.name:  # logarithms of vanishing weights converge slowly, towards log 1e-7
        assert errors[2] < 1e-4
