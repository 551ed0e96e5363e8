"""Choosing under adversarial values: ties, denormals, huge numbers, few and many chosen."""

import torch
from hypothesis import given
from hypothesis import strategies as st

import difflayers as dl
from tests.tolerances import assert_near

NASTY = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0 + 2**-23, 1e30, -1e30, 3e38, -3e38, 1e-30, 1e-40, -1e-45, 700.0])
FINITE = NASTY | st.floats(-1e3, 1e3, width=32)
TEMPERATURE = st.sampled_from([1e-6, 0.1, 1.0, 10.0, 1e4])


@st.composite
def problems(draw, values=FINITE, n=12, dtypes=(torch.float32, torch.float64)):
    """Logits [rows, n] and k."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, n)))
    flat = draw(st.lists(values, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    x = torch.tensor(flat, dtype=torch.float32).to(draw(st.sampled_from(dtypes))).reshape(shape)
    return x.requires_grad_(), draw(st.integers(1, shape[1]))


@given(problem=problems(), temperature=TEMPERATURE)
def test_marginals_are_a_relaxed_subset(problem, temperature):
    x, k = problem
    marginals = dl.subsets.marginals(x.clamp(-1e30, 1e30), k, temperature)
    assert ((marginals >= 0) & (marginals <= 1 + 1e-6)).all()
    assert_near(marginals.sum(-1), torch.full(x.shape[:1], float(k), dtype=x.dtype), factor=10)
    (gradient,) = torch.autograd.grad(marginals.square().sum(), x)
    assert gradient.isfinite().all()


@given(problem=problems(), temperature=TEMPERATURE, seed=st.integers(0, 2**31))
def test_samples_have_k_members(problem, temperature, seed):
    x, k = problem
    generator = torch.Generator().manual_seed(seed)
    sample = dl.subsets.simple(x.clamp(-1e30, 1e30), k, temperature, generator=generator)
    assert ((sample.detach() == 0) | (sample.detach() == 1)).all()
    assert (sample.sum(-1) == k).all()


@given(problem=problems(st.floats(-1e3, 1e3, width=32)), temperature=TEMPERATURE,
       regularization=st.sampled_from(["l2", "kl"]))  # fmt: skip
def test_soft_ranks_and_values(problem, temperature, regularization):
    x, _ = problem
    n = x.shape[1]
    ranks = dl.subsets.soft_rank(x, temperature, regularization=regularization)
    assert ((ranks >= 0) & (ranks <= n * (1 + 1e-5))).all()
    assert_near(ranks.sum(-1), torch.full(x.shape[:1], n * (n + 1) / 2, dtype=x.dtype), factor=100)
    order = x.argsort(-1)
    assert (ranks.gather(-1, order).diff(dim=-1) >= -1e-4 * n).all()
    values = dl.subsets.soft_sort(x, temperature, regularization=regularization)
    assert (values.diff(dim=-1) >= -1e-3).all()
    for y in (ranks, values):
        assert torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0].isfinite().all()


@given(problem=problems())
def test_sparse_distributions(problem):
    x, _ = problem
    for f in (dl.sparsemax, dl.entmax15):
        p = f(x)
        assert (p >= 0).all()
        assert_near(p.sum(-1), torch.ones(x.shape[:1], dtype=x.dtype), factor=10)
        assert torch.autograd.grad(p.square().sum(), x)[0].isfinite().all()


@given(problem=problems(), seed=st.integers(0, 2**31), temperature=st.sampled_from([0.1, 1.0, 10.0]))
def test_estimators_are_distributions_with_finite_gradients(problem, seed, temperature):
    x, _ = problem
    bounded = x.clamp(-1e30, 1e30)
    for f in (dl.gumbel_softmax, dl.straight_through, dl.reinmax):
        y = f(bounded, temperature, generator=torch.Generator().manual_seed(seed))
        assert_near(y.sum(-1), torch.ones(x.shape[:1], dtype=x.dtype), factor=10)
        assert torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0].isfinite().all()
