"""The expected loss and its gradient: exact by enumeration, unbiased by RLOO, whatever the sampling estimator says."""

import functools
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import grad, gradcheck, gradgradcheck

import difflayers as dl
from difflayers.estimators import RLOO, Exact, expectation
from tests.tolerances import assert_identical, assert_near

INF = math.inf


def explicit_sum(loss_fn, logits, length):
    """The expected loss of joint groups of `length` rows of [*, length, n], by loops over everything."""
    n = logits.shape[-1]
    groups = logits.reshape(-1, length, n)
    total = 0.0
    for state in itertools.product(range(n), repeat=length):
        one_hot = torch.eye(n, dtype=logits.dtype)[list(state)]
        probability = groups.softmax(-1)[:, range(length), state].prod(-1)
        total = total + probability * loss_fn(one_hot.expand(groups.shape).reshape(logits.shape)).reshape(-1)
    return total


def problem(batch=2, length=3, n=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, length, n, dtype=dtype, generator=generator)
    weight = torch.randn(length, n, dtype=dtype, generator=generator)

    def loss(sample, weight=weight):
        return ((sample * weight).sum((-2, -1)) - 0.3) ** 3 + (sample[..., 0, :] * weight[1]).sum(-1).sin()

    return logits, loss, weight


@pytest.mark.parametrize("chunk", [1, 4, 1024])
def test_exact_is_the_explicit_sum(chunk):
    logits, loss, _ = problem()
    logits.requires_grad_()
    value = expectation(loss, logits, estimator=Exact(chunk=chunk))
    expected = explicit_sum(loss, logits, 3)
    assert_near(value, expected)
    g = torch.tensor([0.7, -2.0], dtype=torch.float64)
    assert_near(grad(value, logits, g)[0], grad(expected, logits, g)[0], order=1)


def test_exact_differentiates_to_second_order():
    logits, loss, weight = problem(batch=1, length=2)
    weight = weight[:2].clone().requires_grad_()

    def f(logits, weight):
        return expectation(lambda z: loss(z, weight), logits, estimator=Exact(chunk=5))

    assert gradcheck(f, (logits.requires_grad_(), weight))
    assert gradgradcheck(f, (logits, weight))


def test_what_is_joint_follows_from_the_shape_of_the_loss():
    logits, _, weight = problem()

    def each(z):
        return (z * weight).sum(-1).exp()

    per_row = expectation(each, logits, estimator=Exact())
    assert per_row.shape == (2, 3)
    expected = (logits.softmax(-1) * weight.exp()).sum(-1)
    assert_near(per_row, expected)
    per_batch = expectation(lambda z: each(z).prod(-1), logits, estimator=Exact())
    assert_near(per_batch, expected.prod(-1))
    everything = expectation(lambda z: each(z).prod(), logits, estimator=Exact())
    assert_near(everything, expected.prod())
    for estimator in (dl.reinmax, RLOO(2)):
        assert expectation(each, logits, estimator=estimator).shape == (2, 3)
        assert expectation(lambda z: each(z).prod(-1), logits, estimator=estimator).shape == (2,)
        assert expectation(lambda z: each(z).prod(), logits, estimator=estimator).shape == ()


def test_other_dimensions_strides_and_dtypes():
    logits, loss, _ = problem()
    expected = expectation(loss, logits, estimator=Exact())
    moved = logits.permute(2, 0, 1).contiguous()
    for estimator in (Exact(), RLOO(3), dl.reinmax, dl.ReinMax(), dl.ReinMax(dim=1), dl.ReinMax(dim=0)):

        def seed():
            return torch.Generator().manual_seed(5)

        here = expectation(loss, logits, estimator=estimator, generator=seed())
        there = expectation(lambda z: loss(z.movedim(0, -1)), moved, estimator=estimator, dim=0, generator=seed())
        if isinstance(estimator, dl.ReinMax) and estimator.dim != -1:
            assert here.shape == there.shape  # the rows are drawn in another order
        else:
            assert_identical(here, there)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        value = expectation(lambda z: z.square().sum((-1, -2)), logits.to(dtype), estimator=Exact())
        assert value.dtype == dtype
        assert_near(value, torch.full((2,), 3.0, dtype=dtype))
    # the loss decides the dtype of the result
    assert expectation(lambda z: loss(z.double()), logits.float(), estimator=Exact()).dtype == torch.float64
    assert_near(
        expectation(lambda z: loss(z.double()), logits.float(), estimator=Exact()), expected, dtype=torch.float32
    )


def test_masked_classes_are_never_seen():
    logits, _, weight = problem(batch=2, length=2, n=4)
    weight = weight.new_tensor([[0.3, -1.0, 2.0, 0.5], [1.0, 0.0, -0.4, 0.2]])
    logits[0, 0, [0, 2]] = -INF
    logits[1, 1, 3] = -INF
    logits.requires_grad_()
    mask = logits.detach() == -INF
    seen = 0

    def loss(z):
        nonlocal seen
        seen += 1
        assert not (z.bool() & mask).any()
        return ((z * weight).sum((-2, -1)) - 0.3) ** 3

    value = expectation(loss, logits, estimator=Exact(chunk=1))
    assert seen == 4 * 4  # the most classes that a row has: 4 (row 0 of the second), 4 (row 1 of the first)
    expected = explicit_sum(lambda z: ((z * weight).sum((-2, -1)) - 0.3) ** 3, logits, 2)
    assert_near(value, expected)
    gradient = grad(value.sum(), logits)[0]
    assert (gradient[mask] == 0).all()
    masked_out = torch.where(mask, -1e30, logits.detach()).requires_grad_()
    expected = explicit_sum(lambda z: ((z * weight).sum((-2, -1)) - 0.3) ** 3, masked_out, 2)
    assert_near(gradient, grad(expected.sum(), masked_out)[0], order=1)
    for estimator in (RLOO(8), dl.reinmax):
        assert grad(expectation(loss, logits, estimator=estimator).sum(), logits)[0].isfinite().all()


def test_masks_make_enumeration_possible():
    logits = torch.full((40, 30), -INF)
    logits[:, 0] = 0
    logits[:5, 7] = 0
    assert expectation(lambda z: z[:, 7].sum(), logits, estimator=Exact(max_states=32)) == 2.5


def test_parameters_of_the_loss_get_their_gradient():
    logits, loss, weight = problem(batch=1)
    weight.requires_grad_()
    logits.requires_grad_()

    def f(z):
        return loss(z, weight)

    (expected,) = grad(explicit_sum(f, logits, 3).sum(), weight)
    assert_near(grad(expectation(f, logits, estimator=Exact()).sum(), weight)[0], expected, order=1)
    many = logits.detach().expand(20_000, 3, 3).requires_grad_()
    for estimator in (RLOO(2), dl.reinmax):
        value = expectation(f, many, estimator=estimator)
        estimate = grad(value.mean(), weight, retain_graph=True)[0]
        assert (estimate - expected).norm() < 0.1 * expected.norm()


def enumerated(loss_fn, logits, count):
    """E of the surrogate of RLOO(count), by enumeration of all tuples of samples, differentiable as RLOO's is."""
    n = logits.shape[-1]
    total = 0.0
    for states in itertools.product(range(n), repeat=count):
        it = iter(states)
        # the sampler is replaced: everything else is RLOO's own code
        sampled = pytest.MonkeyPatch()
        sampled.setattr("difflayers.estimators.reinforce.reference.sample", lambda rows, u: torch.tensor([[next(it)]]))  # noqa: B023
        try:
            value = expectation(loss_fn, logits, estimator=RLOO(count))
        finally:
            sampled.undo()
        weight = logits.detach().softmax(-1)[list(states)].prod()
        total = total + weight * value
    return total


@pytest.mark.parametrize("count", [2, 3])
def test_rloo_is_unbiased_exactly(count):
    """The expectation of the estimate over all tuples of samples, and of its derivatives to second order."""
    logits, _, weight = problem(n=4)
    logits = logits[0, 0].clone().requires_grad_()
    weight = weight[0].clone().requires_grad_()

    def loss(z):
        return ((z * weight).sum() - 0.3) ** 3

    exact = expectation(loss, logits, estimator=Exact())
    estimate = enumerated(loss, logits, count)
    assert_near(estimate, exact)
    inputs = (logits, weight)
    first = [grad(value, inputs, create_graph=True) for value in (estimate, exact)]
    for mine, true in zip(*first, strict=True):
        assert_near(mine, true, order=1)
    for i in range(4):
        second = [grad(pair[0][i] + 0.5 * pair[1][i], inputs, retain_graph=True) for pair in first]
        for mine, true in zip(*second, strict=True):
            assert_near(mine, true, order=2)


def test_rloo_of_joint_rows_is_unbiased_within_four_sigma():
    logits, loss, _ = problem(batch=1, length=2)
    logits.requires_grad_()
    (expected,) = grad(expectation(loss, logits, estimator=Exact()).sum(), logits)
    many = logits.detach().expand(50_000, 2, 3).clone().requires_grad_()
    generator = torch.Generator().manual_seed(1)
    (gradients,) = grad(expectation(loss, many, estimator=RLOO(3), generator=generator).sum(), many)
    sigma = gradients.std(0) / math.sqrt(len(gradients))
    assert ((gradients.mean(0) - expected[0]).abs() < 4 * sigma).all()
    assert (sigma > 0).all()
    assert sigma.max() < 0.1 * expected.abs().max()


def test_rloo_needs_no_derivative_of_the_loss():
    logits = torch.randn(1000, 3, dtype=torch.float64, requires_grad=True)

    def steps(z):
        return (z.argmax(-1) >= 1).double()

    estimate = grad(expectation(steps, logits, estimator=RLOO(16)).sum(), logits)[0]
    exact = grad(expectation(steps, logits, estimator=Exact()).sum(), logits)[0]
    cosine = torch.nn.functional.cosine_similarity(estimate.flatten(), exact.flatten(), dim=0)
    assert cosine > 0.9


def test_sampling_estimators_are_what_they_are():
    """One call, the same generator: the estimator's own sample, value and gradient."""
    logits, loss, _ = problem()
    logits.requires_grad_()
    half = functools.partial(dl.gumbel_softmax, temperature=0.5, hard=True)
    for estimator in (dl.reinmax, dl.straight_through, half, dl.GumbelSoftmax(0.5)):

        def seed():
            return torch.Generator().manual_seed(3)

        value = expectation(loss, logits, estimator=estimator, generator=seed())
        expected = loss(estimator(logits, generator=seed()))
        assert_identical(value, expected)
        assert_identical(grad(value.sum(), logits)[0], grad(expected.sum(), logits)[0])
        generator = seed()
        expected = sum(loss(estimator(logits, generator=generator)) for _ in range(3)) / 3
        assert_near(expectation(loss, logits, estimator=estimator, samples=3, generator=seed()), expected)


def test_reinmax_is_exact_for_quadratics_in_expectation():
    """Enumerating the sample instead of drawing it: the mean of ReinMax's gradients is Exact's."""
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    b = torch.randn(5, dtype=torch.float64)

    def quadratic(z):
        return ((z * b).sum(-1) - 0.2) ** 2 + z[..., 0] * z[..., 1]

    many = logits.detach().expand(5, 5).clone().requires_grad_()
    one_of_each = functools.partial(_given_index, index=torch.arange(5)[:, None])
    (gradients,) = grad(expectation(quadratic, many, estimator=one_of_each).sum(), many)
    mean = (logits.detach().softmax(-1)[:, None] * gradients).sum(0)
    (exact,) = grad(expectation(quadratic, logits, estimator=Exact()), logits)
    assert_near(mean, exact, order=1)


def _given_index(logits, *, index, dim, generator):
    return dl.estimators.reference.reinmax(logits, 1.0, index)


def test_empty():
    for estimator in (Exact(), RLOO(2), dl.reinmax):
        assert expectation(lambda z: z.sum(-1), torch.zeros(0, 3), estimator=estimator).shape == (0,)
        assert expectation(lambda z: z.sum(), torch.zeros(0, 3), estimator=estimator) == 0
        assert_identical(expectation(lambda z: z.sum(-1), torch.zeros(2, 0), estimator=estimator), torch.zeros(2))
        assert_identical(expectation(lambda z: z.sum(-1), torch.zeros(2, 1), estimator=estimator), torch.ones(2))


def test_transforms():
    logits, loss, _ = problem()

    def f(logits):
        return expectation(loss, logits, estimator=Exact()).sum()

    leaf = logits.clone().requires_grad_()
    (expected,) = grad(f(leaf), leaf)
    assert_near(torch.func.grad(f)(logits), expected, order=1)
    assert_near(torch.func.vmap(torch.func.grad(f))(logits[:, None])[:, 0], expected, order=1)
    masked = logits.clone()
    masked[:, 1, 0] = -INF
    leaf = masked.clone().requires_grad_()
    (expected,) = grad(f(leaf), leaf)
    assert_near(torch.func.grad(f)(masked), expected, order=1)
    assert torch.func.vmap(f)(torch.full((2, 1, 3, 3), -INF, dtype=torch.float64)).isnan().all()

    def r(logits):
        return expectation(loss, logits, estimator=RLOO(2)).sum()

    gradients = torch.func.vmap(torch.func.grad(r), randomness="different")(logits[:1].expand(4000, 1, 3, 3))
    (expected,) = grad(f(leaf := logits[:1].clone().requires_grad_()), leaf)
    assert ((gradients.mean(0) - expected).abs() < 4 * gradients.std(0) / math.sqrt(4000)).all()


def test_compile():
    logits, loss, _ = problem()
    for estimator in (Exact(), dl.reinmax, RLOO(2)):
        torch._dynamo.reset()
        f = torch.compile(
            lambda logits, e=estimator: expectation(loss, logits, estimator=e), fullgraph=True, backend="aot_eager"
        )
        leaf = logits.clone().requires_grad_()
        value = f(leaf)
        (gradient,) = grad(value.sum(), leaf)
        assert gradient.isfinite().all()
        if isinstance(estimator, Exact):
            assert_near(value, expectation(loss, logits, estimator=estimator))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=0, max_size=3), st.integers(1, 3), st.data())
def test_exact_of_any_shape_is_a_weighted_mean(lead, n, data):
    """Constant losses keep their value, linear ones give the probabilities, whatever is joint."""
    joint = data.draw(st.integers(0, len(lead)))
    dim = data.draw(st.integers(-len(lead) - 1, len(lead)))
    logits = torch.randn(*lead, n, dtype=torch.float64).movedim(-1, dim)
    axes = tuple(range(joint, len(lead) + 1))

    def loss(z):
        return z.movedim(dim, -1)[..., 0].sum(axes[:-1]) if axes[:-1] else z.movedim(dim, -1)[..., 0]

    value = expectation(loss, logits, estimator=Exact(chunk=data.draw(st.integers(1, 9))), dim=dim)
    probability = logits.movedim(dim, -1).softmax(-1)[..., 0]
    assert_near(value, probability.sum(axes[:-1]) if axes[:-1] else probability)


X = torch.zeros(2, 3, 4)


def each(z):
    return z.sum(-1)


BAD = [
    (TypeError, r"'loss_fn' must be a function.*got int", lambda: expectation(3, X, estimator=RLOO(2))),
    (TypeError, r"'logits' must be a torch.Tensor, got list", lambda: expectation(each, [1.0], estimator=RLOO(2))),
    (TypeError, r"'logits' must have a floating.*int64", lambda: expectation(each, X.long(), estimator=RLOO(2))),
    (ValueError, r"'dim' must be in \[-3, 2\]", lambda: expectation(each, X, estimator=RLOO(2), dim=3)),
    (TypeError, r"'estimator' must be a function or an instance, got the class ReinMax; call it first",
     lambda: expectation(each, X, estimator=dl.ReinMax)),
    (TypeError, r"'estimator' must be a sampling.*got str", lambda: expectation(each, X, estimator="reinmax")),
    (ValueError, r"'samples' must be at least 1, got 0", lambda: expectation(each, X, estimator=dl.reinmax, samples=0)),
    (ValueError, r"'samples' must be 1 for RLOO\(2\).*got 3",
     lambda: expectation(each, X, estimator=RLOO(2), samples=3)),
    (TypeError, r"'loss_fn' must return a floating-point tensor, got float",
     lambda: expectation(lambda z: 1.0, X, estimator=RLOO(2))),
    (TypeError, r"'loss_fn' must return a floating-point tensor, got int64",
     lambda: expectation(lambda z: z.argmax(-1), X, estimator=Exact())),
    (ValueError, r"'loss_fn' must return a scalar or.*leading part of \(2, 3\), got shape \(3,\)",
     lambda: expectation(lambda z: z.sum((0, 2)), X, estimator=Exact())),
    (ValueError, r"'loss_fn' must return a scalar or.*got shape \(2, 3, 4\)",
     lambda: expectation(lambda z: z, X, estimator=dl.reinmax)),
    (ValueError, r"'logits' must have at most max_states = 65536 joint states for Exact, got 16777216 \(12 choices",
     lambda: expectation(lambda z: z.sum(), torch.zeros(3, 4, 4), estimator=Exact())),
    (ValueError, r".*got about 10\^60 \(100 choices",
     lambda: expectation(torch.sum, torch.zeros(100, 4), estimator=Exact())),
    (ValueError, r"'logits' must not contain NaN", lambda: expectation(each, X * math.nan, estimator=Exact())),
    (ValueError, r"'logits' must leave something", lambda: expectation(each, X - INF, estimator=RLOO(2))),
    (ValueError, r"'estimator' must return a sample in the shape of the logits, \(2, 3, 4\), got shape \(2, 3\)",
     lambda: expectation(each, X, estimator=lambda z, dim, generator: z.sum(-1))),
    (ValueError, r"'estimator' must choose along a dimension of the logits.*ReinMax with dim = 5",
     lambda: expectation(each, X, estimator=dl.ReinMax(dim=5))),
    (dl.UnsupportedOperationError, r"'loss_fn' must allow torch.func.vmap.*pass chunk=1",
     lambda: expectation(lambda z: z.sum(-1) * z.sum().item(), X, estimator=Exact())),
]  # fmt: skip


@pytest.mark.parametrize(("error", "shown", "call"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input(error, shown, call):
    with pytest.raises(error, match=rf"^difflayers\.expectation: argument {shown}") as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "shown", "call"),
    [
        (ValueError, r"RLOO: argument 'samples' must be at least 2, got 1", lambda: RLOO(1)),
        (TypeError, r"RLOO: argument 'samples' must be an integer", lambda: RLOO(2.0)),
        (ValueError, r"Exact: argument 'chunk' must be at least 1", lambda: Exact(chunk=0)),
        (ValueError, r"Exact: argument 'max_states' must be at least 1", lambda: Exact(max_states=0)),
    ],
)
def test_bad_settings(error, shown, call):
    with pytest.raises(error, match=rf"^difflayers\.estimators\.{shown}"):
        call()


def test_errors_of_the_loss_pass_through():
    def broken(z):
        raise RuntimeError("no such thing")

    with pytest.raises(RuntimeError, match=r"^no such thing$"):
        expectation(broken, X, estimator=Exact())


def test_data_dependent_losses_one_by_one():
    def loss(z):
        return z.sum() * (2.0 if z[0, 1].item() == 1 else 1.0)

    assert expectation(loss, torch.zeros(1, 2), estimator=Exact(chunk=1)) == 1.5


def test_they_are_expectation_estimators():
    for estimator in (RLOO(2), Exact()):
        assert isinstance(estimator, dl.protocols.ExpectationEstimator)
    assert not isinstance(dl.ReinMax(), dl.protocols.ExpectationEstimator)
    assert repr(RLOO(2)) == "RLOO(2)"
    assert repr(Exact()) == "Exact(max_states=65536, chunk=1024)"
