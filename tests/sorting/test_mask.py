"""Ragged rows: absent elements behave as +inf, come out as 0, and perturb nothing."""

import math

import pytest
import torch

import difflayers as dl
from tests.cases import FUNCTIONS, MODULES, NETWORKS, name_of, payload
from tests.sorting import naive
from tests.tolerances import assert_identical, assert_near

MASK = torch.tensor(
    [
        [True, False, True, True, False, True],
        [True, True, True, True, True, True],
        [False, False, False, True, False, False],
        [False, False, False, False, False, False],
    ]
)
COUNT = MASK.sum(1)
softness = pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
each_case = pytest.mark.parametrize("case", FUNCTIONS + MODULES, ids=name_of)
each_network = pytest.mark.parametrize("network", NETWORKS)


def random(seed=0, dtype=torch.float64):
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 3e38, 0.0])
@softness
@each_case
def test_absent_places_hold_anything(case, hard, garbage):
    x = random(dtype=torch.float32)
    expected = case.run(x, mask=MASK, hard=hard)
    spoiled = torch.where(MASK, x, garbage).requires_grad_()
    actual = case.run(spoiled, mask=MASK, hard=hard)
    assert_identical(actual.detach(), expected)
    finite = torch.where(actual.isfinite(), actual, 0.0)
    (gradient,) = torch.autograd.grad(finite.square().sum(), spoiled)
    assert gradient.isfinite().all()
    assert not gradient[~MASK].any()


@softness
@each_network
def test_equals_infinite_padding(network, hard):
    x, s = random(), {"network": network, "hard": hard, "steepness": 3.0}
    values, matrix, ranks = (f(x, mask=MASK, **s) for f in (dl.sort, dl.permutation, dl.rank))
    for i in range(4):
        padded = torch.where(MASK[i], x[i], math.inf)
        wires, P = naive.run(padded, **s)
        present, occupied = MASK[i], torch.arange(6) < COUNT[i]
        assert_near(values[i], torch.where(occupied, wires, 0.0))
        assert_near(matrix[i], torch.where(occupied[:, None], P, 0.0))
        assert_near(ranks[i], torch.where(present, P.T @ torch.arange(1.0, 7.0, dtype=torch.float64), 0.0))
        assert not matrix[i][:, ~present].any()


@each_network
def test_hard_is_the_sort_of_what_is_present(network):
    x = random()
    s = {"network": network, "hard": True, "mask": MASK}
    for i in range(4):
        here = x[i][MASK[i]]
        c = len(here)
        assert_identical(dl.sort(x, **s)[i], torch.cat([here.sort().values, torch.zeros(6 - c).double()]))
        assert_identical(dl.rank(x, **s)[i][MASK[i]], here.argsort().argsort().double() + 1)
        for q in (0.0, 0.3, 0.5, 1.0):
            actual = dl.quantile(x, q, **s)[i]
            assert actual.isnan() if c == 0 else torch.allclose(actual, torch.quantile(here, q))


@softness
def test_soft_sum_is_that_of_the_present(hard):
    x = random()
    assert_near(dl.sort(x, mask=MASK, hard=hard).sum(1), torch.where(MASK, x, 0.0).sum(1))
    assert_near(dl.permutation(x, mask=MASK, hard=hard).sum((1, 2)), COUNT.double())


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("k", [0, 2, 4, 6])
@softness
def test_topk_with_fewer_than_k_present(k, largest, hard):
    x = random()
    values, membership = dl.topk(x, k, largest=largest, mask=MASK, hard=hard)
    there = COUNT.clamp(max=k)
    assert_near(membership.sum(1), there.double())
    assert not membership[~MASK].any()
    assert ((membership >= 0) & (membership <= 1)).all()
    assert not values[torch.arange(k) >= there[:, None]].any()
    if hard:
        for i in range(4):
            expected = x[i][MASK[i]].topk(int(there[i]), largest=largest).values
            assert_identical(values[i, : there[i]], expected)


def test_sort_by_ignores_payload_of_absent_elements():
    x, items = random(), torch.randn(4, 6, 3, dtype=torch.float64)
    spoiled = torch.where(MASK[..., None], items, math.nan).requires_grad_()
    actual = dl.sort_by(x, spoiled, mask=MASK)
    assert_near(actual, dl.permutation(x, mask=MASK) @ items)
    (gradient,) = torch.autograd.grad(actual.sum(), spoiled)
    assert gradient.isfinite().all()
    assert not gradient[~MASK].any()
    occupied = torch.arange(6) < COUNT[:, None]
    spoiled = torch.where(occupied[..., None], items, math.nan)
    assert_near(dl.sort_by(x, spoiled, inverse=True, mask=MASK), dl.permutation(x, mask=MASK).mT @ items)


@pytest.mark.parametrize("case", FUNCTIONS, ids=name_of)
def test_gradient_is_right(case):
    x = random().requires_grad_()
    rows = slice(0, 3)  # the last row has nothing present, of which quantiles are NaN
    assert torch.autograd.gradcheck(lambda t: case.run(t, mask=MASK[rows], steepness=2.0), x[rows])


@pytest.mark.parametrize("shape", [(6,), (1, 6), (4, 1), (1, 1)])
def test_broadcasts(shape):
    x, mask = random(), torch.rand(shape) < 0.7
    full = mask.expand(4, 6)
    for f in (dl.sort, dl.permutation, dl.rank):
        assert_identical(f(x, mask=mask), f(x, mask=full))
    assert_identical(dl.sort_by(x, payload(6), mask=mask), dl.sort_by(x, payload(6), mask=full))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_follows_dim(dim):
    x, mask = torch.randn(3, 4, 5), torch.rand(3, 4, 5) < 0.6
    expected = dl.sort(x.movedim(dim, -1), mask=mask.movedim(dim, -1)).movedim(-1, dim)
    assert_identical(dl.sort(x, mask=mask, dim=dim), expected)
    items = torch.randn(x.shape[dim], 2)
    assert_identical(
        dl.sort_by(x, items, mask=mask, dim=dim), dl.sort_by(x.movedim(dim, -1), items, mask=mask.movedim(dim, -1))
    )


def test_everything_present_is_no_mask():
    x = random()
    for f in (dl.sort, dl.permutation, dl.rank, dl.median):
        assert_identical(f(x, mask=torch.ones(6, dtype=torch.bool)), f(x))


@softness
@each_network
def test_a_present_infinity_keeps_its_place(network, hard):
    """Absent elements act as +inf (as -inf in topk), yet what is present comes before what is not."""
    x = torch.tensor([0.0, math.inf, 1.0, -math.inf])
    s = {"network": network, "hard": hard, "mask": torch.tensor([False, True, False, True])}
    assert_identical(dl.sort(x, **s), torch.tensor([-math.inf, math.inf, 0.0, 0.0]))
    assert_identical(dl.rank(x, **s), torch.tensor([0.0, 2.0, 0.0, 1.0]))
    matrix = torch.zeros(4, 4)
    matrix[0, 3] = matrix[1, 1] = 1
    assert_identical(dl.permutation(x, **s), matrix)
    assert_identical(dl.sort_by(x, torch.arange(4.0)[:, None], **s)[:, 0], torch.tensor([3.0, 1.0, 0.0, 0.0]))
    for largest in (True, False):
        assert_identical(dl.topk(x, 3, largest=largest, **s).membership, torch.tensor([0.0, 1.0, 0.0, 1.0]))
