"""The claims in tests/properties.py, on the table of cases."""

import pytest
import torch

import difflayers as dl
from tests.cases import FUNCTIONS, INSERTION, MODULES, MONOTONIC, NETWORKS, SWAPS, name_of
from tests.properties import (
    assert_doubly_stochastic,
    assert_matrix_applies,
    assert_monotone,
    assert_permutation_matrix,
    assert_scaling,
    assert_sum_conserved,
    assert_translation,
)
from tests.tolerances import assert_identical, assert_near

each_swap = pytest.mark.parametrize("swap", SWAPS)
each_network = pytest.mark.parametrize("network", [*NETWORKS, INSERTION], ids=str)
each_case = pytest.mark.parametrize("case", FUNCTIONS + MODULES, ids=name_of)
N = 7


@pytest.mark.parametrize("steepness", [0.1, 3.0, 1e3])
@each_network
@each_swap
def test_matrix_and_values(swap, network, steepness):
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(4, N, dtype=dtype)
        s = {"swap": swap, "network": network, "steepness": steepness}
        matrix, values = dl.permutation(x, **s), dl.sort(x, **s)
        assert_doubly_stochastic(matrix)
        assert_matrix_applies(matrix, x, values)
        assert_sum_conserved(values, x)
        positions = torch.arange(1, N + 1, dtype=dtype)
        assert_near(dl.rank(x, **s), positions @ matrix)
        for k in range(N + 1):
            best = dl.topk(x, k, **s)
            assert_near(best.values, values.flip(-1)[:, :k])
            assert_near(best.membership, matrix[:, N - k :].sum(1))
            assert_near(best.membership.sum(-1), torch.full((4,), float(k), dtype=dtype))
            worst = dl.topk(x, k, largest=False, **s)
            assert_near(worst.values, values[:, :k])
            assert_near(worst.membership, matrix[:, :k].sum(1))


@each_network
def test_hard_matrix_and_values(network):
    x = torch.randn(4, N)
    matrix = dl.permutation(x, network=network, hard=True)
    assert_permutation_matrix(matrix)
    assert_identical((matrix @ x[..., None])[..., 0], x.sort(-1).values)


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@each_network
@each_swap
def test_jacobian(swap, network, hard):
    """Monotone = doubly stochastic Jacobian, for the monotonic swaps; unit sums for all."""
    lowest = 0.0
    for x in torch.randn(5, N, dtype=torch.float64):
        jacobian = assert_monotone(
            lambda row: dl.sort(row, swap=swap, network=network, hard=hard), x, increasing=swap in MONOTONIC
        )
        lowest = min(lowest, jacobian.min().item())
    assert (lowest < -1e-3) == (swap not in MONOTONIC)  # the claim distinguishes


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@each_swap
@each_case
def test_translation(case, swap, hard):
    x = torch.randn(2, N, dtype=torch.float64)
    assert_translation(lambda t: case.run(t, swap=swap, hard=hard), x, 13.7, case.kind)


@pytest.mark.parametrize("swap", [swap for swap in SWAPS if swap != "logistic_art"])  # d / |d|^lam has no scale
@each_case
def test_scaling(case, swap):
    x = torch.randn(2, N, dtype=torch.float64)
    for scale in (1e-3, 2.5, 1e4):
        assert_scaling(lambda t, steepness: case.run(t, swap=swap, steepness=steepness), x, scale, 3.0, case.kind)


# the payload of "sort_by" stays in place while the scores move
@pytest.mark.parametrize("case", [case for case in FUNCTIONS + MODULES if "sort_by" not in case.name], ids=name_of)
def test_hard_is_equivariant_to_permutations(case):
    """What belongs to an input moves with it; what belongs to an output stays."""
    x, p = torch.randn(2, N), torch.randperm(N)
    before, after = case.run(x, hard=True), case.run(x[:, p], hard=True)
    if case.kind == "weights":  # of inputs: ranks, membership, columns of the matrix
        before = before[..., p]
    assert_identical(after, before)
