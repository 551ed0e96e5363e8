"""Random shapes and adversarial values: ties, infinities, denormals, huge numbers, nothing at all."""

import torch
from hypothesis import given
from hypothesis import strategies as st

import difflayers as dl
from tests.cases import FUNCTIONS, MONOTONIC, NETWORKS, SWAPS
from tests.properties import assert_doubly_stochastic, assert_permutation_matrix
from tests.tolerances import assert_identical, assert_near

INF = float("inf")
# few distinct numbers, so that ties are common
NASTY = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0 + 2**-23, 1e30, -1e30, 3e38, -3e38, 1e-30, 1e-40, -1e-45])
FINITE = NASTY | st.floats(-1e3, 1e3, width=32)
ANY = FINITE | st.sampled_from([INF, -INF])
STEEPNESS = st.sampled_from([1e-6, 0.1, 1.0, 10.0, 1e3, 1e20])
chosen = {"network": st.sampled_from(NETWORKS), "swap": st.sampled_from(SWAPS), "steepness": STEEPNESS}


@st.composite
def scores(draw, values, *, rows=3, n=12, least=0):
    shape = (draw(st.integers(0, rows)), draw(st.integers(least, n)))
    flat = draw(st.lists(values, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    return torch.tensor(flat, dtype=torch.float32).reshape(shape)


@given(x=scores(ANY), **chosen)
def test_matrix_is_doubly_stochastic(x, **how):
    assert_doubly_stochastic(dl.permutation(x, **how), factor=10)
    assert_permutation_matrix(dl.permutation(x, hard=True, **how))


@given(x=scores(ANY), **chosen)
def test_hard_sort_is_torch_sort(x, **how):
    expected = x.sort(-1).values
    assert_identical(dl.sort(x, hard=True, **how), expected)
    assert_identical(dl.sort(x, hard=True, descending=True, **how), expected.flip(-1))
    ranks = dl.rank(x, hard=True, **how).long()
    assert_identical(torch.empty_like(x).scatter(-1, ranks - 1, x), expected)


@given(x=scores(st.floats(-1e3, 1e3, width=32)), **chosen)
def test_values_stay_between_the_extremes_and_keep_their_sum(x, **how):
    y = dl.sort(x, **how)
    slack = 1e-5 * max(1.0, x.abs().max().item() if x.numel() else 0.0)
    if x.shape[1]:
        assert (y >= x.amin(-1, keepdim=True) - slack).all()
        assert (y <= x.amax(-1, keepdim=True) + slack).all()
    assert_near(y.sum(-1), x.sum(-1), factor=10)


@given(x=scores(FINITE, least=1), hard=st.booleans(), case=st.sampled_from(FUNCTIONS), **chosen)
def test_finite_in_finite_out_with_finite_gradients(x, hard, case, **how):
    x = x.clamp(-1e38, 1e38).requires_grad_()  # a sum of 3e38 may overflow
    y = case.run(x, hard=hard, **how)
    assert y.isfinite().all()
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.isfinite().all()


@given(x=scores(ANY, least=1), hard=st.booleans(), **chosen)
def test_infinities_make_no_nan(x, hard, **how):
    x = x.clamp(-1e38, 1e38).where(x.isfinite(), x).requires_grad_()
    for f in (dl.sort, dl.permutation, dl.rank):
        y = f(x, hard=hard, **how)
        assert not y.isnan().any()
        (gradient,) = torch.autograd.grad(torch.where(y.isfinite(), y, 0.0).sum(), x)
        assert gradient.isfinite().all()
    values = dl.sort(x, hard=hard, **how)
    assert_identical((values == INF).sum(-1), (x == INF).sum(-1))  # as many as went in
    assert_identical((values == -INF).sum(-1), (x == -INF).sum(-1))


@given(x=scores(st.floats(-10, 10, width=32), rows=1, n=9, least=1), network=chosen["network"],
       swap=st.sampled_from(MONOTONIC), steepness=chosen["steepness"], hard=st.booleans())  # fmt: skip
def test_monotonic_swaps_never_move_the_wrong_way(x, **how):
    if not x.numel():
        return
    jacobian = torch.func.jacrev(lambda row: dl.sort(row, **how))(x[0].double())
    assert (jacobian >= -1e-12).all()
    assert_near(jacobian.sum(0), torch.ones(x.shape[1]).double(), order=1)


@given(x=scores(FINITE | st.just(-INF)), data=st.data(), **chosen)
def test_mask_of_anything(x, data, **how):
    bits = data.draw(st.integers(0, 2 ** x.numel() - 1))
    mask = torch.tensor([bits >> i & 1 == 1 for i in range(x.numel())], dtype=torch.bool).reshape(x.shape)
    matrix = dl.permutation(x, mask=mask, **how)
    assert_near(matrix.sum(-2), mask.float(), factor=10)
    occupied = torch.arange(x.shape[1]) < mask.sum(-1, keepdim=True)
    assert_near(matrix.sum(-1), occupied.float(), factor=10)
    garbage = torch.where(mask, x, float("nan"))
    assert_identical(dl.sort(garbage, mask=mask, **how), dl.sort(x, mask=mask, **how))


@given(x=scores(FINITE, least=1), data=st.data(), **chosen)
def test_membership_sums_to_k(x, data, **how):
    k = data.draw(st.integers(0, x.shape[1]))
    values, membership = dl.topk(x, k, **how)
    assert values.shape == (x.shape[0], k)
    assert ((membership >= 0) & (membership <= 1)).all()
    assert_near(membership.sum(-1), torch.full((x.shape[0],), float(k)), factor=10)
