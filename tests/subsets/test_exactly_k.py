"""The distribution of exactly k of n: against enumeration, kernel against reference, samples against marginals."""

import math
from itertools import combinations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap
from torch.library import opcheck

import difflayers as dl
from difflayers import subsets
from difflayers.subsets import kernels, reference
from tests.tolerances import assert_identical, assert_near

INF = math.inf
compiled = pytest.mark.skipif(not dl.build_info()["compiled"], reason="the kernels are not compiled in")


def random(*shape, scale=1.0):
    return scale * torch.randn(shape, dtype=torch.float64)


def all_subsets(n, k):
    """[number of them, n] of 0 and 1."""
    z = torch.zeros(math.comb(n, k), n, dtype=torch.float64)
    for row, members in zip(z, combinations(range(n), k), strict=True):
        row[list(members)] = 1
    return z


def enumerated(theta, k):
    """Marginals, logarithm of the normalising constant and entropy of each row, from all subsets."""
    z = all_subsets(theta.shape[-1], k)
    weights = theta @ z.T  # shape: [B, subsets]
    logs = weights.log_softmax(-1)
    return logs.exp() @ z, weights.logsumexp(-1), -(logs.exp() * logs).sum(-1)


@pytest.mark.parametrize("n", range(1, 13))
def test_enumeration(n):
    for k in range(n + 1):
        theta = torch.cat([random(3, n), random(2, n, scale=8.0), torch.zeros(1, n)])
        mean, constant, entropy = enumerated(theta, k)
        assert_near(subsets.marginals(theta, k), mean)
        assert_near(subsets.subset_entropy(theta, k), entropy, factor=100)
        z = all_subsets(n, k)
        logs = subsets.subset_log_prob(theta, z[:, None], k)
        assert_near(logs, (z @ theta.T) - constant, factor=10)
        assert_near(logs.exp().sum(0), torch.ones(6).double(), factor=100)
        if 0 < k < n:
            for implementation in (reference, kernels):
                assert_near(implementation.marginals(theta, k), mean)
                assert_near(implementation.log_normalizer(theta, k), constant)


def test_published_vector():
    """p = (.3, .6, .5, .2), k = 2; the published second version's samples have .4127 .6852 .6166 .2855 instead."""
    logits = torch.tensor([0.3, 0.6, 0.5, 0.2], dtype=torch.float64).logit()
    expected = torch.tensor([0.3568, 0.7622, 0.6595, 0.2216]).double()
    torch.testing.assert_close(subsets.marginals(logits, 2), expected, rtol=0, atol=5e-5)
    count = 100_000
    for draw in (
        lambda g: subsets.sample_subset(logits, 2, sample_shape=(count,), generator=g),
        lambda g: subsets.simple(logits.expand(count, 4), 2, generator=g),
        lambda g: reference.sample(logits[None], torch.rand(1, count, 4, dtype=torch.float64, generator=g), 2)[0],
    ):
        z = draw(torch.Generator().manual_seed(1))
        frequency = z.mean(0)
        sigma = (expected * (1 - expected) / count).sqrt()
        assert ((frequency - expected).abs() < 4 * sigma + 5e-5).all()


@pytest.mark.parametrize(("n", "k"), [(2, 1), (5, 2), (5, 4), (7, 3)])
def test_every_subset_is_as_frequent_as_it_is_likely(n, k):
    logits, count = random(n), 40_000
    z = subsets.sample_subset(logits, k, sample_shape=(count,), generator=torch.Generator().manual_seed(2))
    codes = 2 ** torch.arange(n)
    seen = torch.bincount((z.long() * codes).sum(-1), minlength=2**n)
    every = all_subsets(n, k)
    expected = count * subsets.subset_log_prob(logits, every, k).exp()
    found = seen[(every.long() * codes).sum(-1)]
    assert found.sum() == count
    chi = ((found - expected).square() / expected).sum().item()
    degrees = len(every) - 1
    assert chi < degrees + 5 * math.sqrt(2 * degrees) + 5


def test_samples_shapes_and_seed():
    logits = random(2, 6, 3)
    generator = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    z = subsets.sample_subset(logits, 2, sample_shape=(4, 5), dim=1, generator=generator())
    assert z.shape == (4, 5, 2, 6, 3)
    assert_identical(z.sum(3), torch.full((4, 5, 2, 3), 2.0).double())
    turned = subsets.sample_subset(logits.movedim(1, -1), 2, sample_shape=(4, 5), generator=generator())
    assert_identical(turned, z.movedim(3, -1))
    assert subsets.sample_subset(logits, 0, dim=1).sum() == 0
    assert subsets.sample_subset(logits, 6, dim=1, sample_shape=(3,)).sum() == 3 * 36
    assert subsets.sample_subset(logits, 2, dim=1, sample_shape=(0,)).shape == (0, 2, 6, 3)
    assert subsets.sample_subset(torch.zeros(0, 4), 2).shape == (0, 4)
    assert subsets.sample_subset(torch.zeros(4, requires_grad=True), 2).requires_grad is False
    assert subsets.sample_subset(logits.half(), 2, dim=1).dtype == torch.float16


@compiled
@pytest.mark.parametrize(("n", "k"), [(2, 1), (9, 1), (9, 8), (30, 7), (300, 120), (1500, 60)])
def test_kernel_is_the_reference(n, k):
    """Also where the tables are cut into blocks."""
    theta, noise = random(2, n, scale=2.0), torch.rand(2, 3, n, dtype=torch.float64)
    assert_identical(kernels.sample(theta, noise, k), reference.sample(theta, noise, k))
    assert_near(kernels.log_normalizer(theta, k), reference.log_normalizer(theta, k))
    g, h, weights = random(2, n), random(2, n), random(2, n)
    results = []
    for implementation in (kernels, reference):
        leaf = theta.clone().requires_grad_()
        y = implementation.marginals(leaf, k)
        if implementation is reference and n > 300:
            results.append((y, reference.marginals(theta, k, (g,)), reference.marginals(theta, k, (g, h))))
            continue
        (first,) = torch.autograd.grad(y, leaf, g, create_graph=True)
        (second,) = torch.autograd.grad(first, leaf, h)
        results.append((y, first, second))
    for order, (actual, expected) in enumerate(zip(*results, strict=True)):
        assert_near(actual, expected, order=order)
    assert weights.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_kernels(monkeypatch, dtype):
    """The public functions on the plain path, as on a device without a kernel."""
    x, weights = random(3, 7).to(dtype), random(3, 7).to(dtype)

    def everything():
        leaf = x.clone().requires_grad_()
        generator = torch.Generator().manual_seed(0)
        z = subsets.simple(leaf, 3, generator=generator)
        (slope,) = torch.autograd.grad((z * weights).sum(), leaf)
        return z, slope, subsets.marginals(x, 3), subsets.subset_entropy(x, 3), subsets.subset_log_prob(x, z, 3)

    expected = everything()
    monkeypatch.setattr(dl._ops, "has_kernel", lambda *_: False)
    for actual, wanted in zip(everything(), expected, strict=True):
        assert_near(actual, wanted, order=1)


@compiled
def test_every_instruction_set(tmp_path):
    import os
    import subprocess
    import sys

    torch.save(random(3, 70), tmp_path / "theta.pt")
    code = (
        "import torch; from difflayers.subsets import kernels\n"
        f"theta = torch.load({str(tmp_path / 'theta.pt')!r}).requires_grad_()\n"
        "y = kernels.marginals(theta, 20); (g,) = torch.autograd.grad(y.square().sum(), theta, create_graph=True)\n"
        "(h,) = torch.autograd.grad(g.square().sum(), theta)\n"
        f"torch.save((y.detach(), g.detach(), h), {str(tmp_path / 'result.pt')!r})"
    )
    results = []
    for name in dl.build_info()["instruction_sets"]:
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "DIFFLAYERS_ISA": name}, check=True)
        results.append(torch.load(tmp_path / "result.pt"))
    for result in results[1:]:
        for order, (actual, expected) in enumerate(zip(result, results[0], strict=True)):
            assert_near(actual, expected, order=order)


def test_derivatives_to_third_order():
    x = random(1, 4).requires_grad_()
    for k in (1, 3):
        f = lambda t, k=k: subsets.marginals(t, k)  # noqa: E731
        assert gradcheck(f, x)
        assert gradgradcheck(f, x)
        first = lambda t: torch.autograd.grad(f(t).sin().sum(), t, create_graph=True)[0]  # noqa: B023, E731
        assert gradgradcheck(first, x)
        assert gradcheck(lambda t: reference.marginals(t, k), x)  # noqa: B023
        assert gradgradcheck(lambda t: reference.log_normalizer(t, k), x)  # noqa: B023
        for direction_count in (1, 2, 3):
            along = tuple(random(1, 4) for _ in range(direction_count))
            assert gradcheck(lambda t: reference.marginals(t, k, along), x)  # noqa: B023


def test_the_jacobian_is_the_covariance():
    theta, k = random(1, 7), 3
    z = all_subsets(7, k)
    p = (theta @ z.T).softmax(-1)[0]
    mean = p @ z
    covariance = (z - mean).T @ ((z - mean) * p[:, None])
    jacobian = torch.autograd.functional.jacobian(lambda t: subsets.simple(t, k), theta[0])
    assert_near(jacobian, covariance, order=1)


def test_gradients_of_log_prob_and_entropy():
    x = random(2, 6).requires_grad_()
    temperature = torch.tensor([[0.7], [1.2]], dtype=torch.float64).requires_grad_()
    members = torch.tensor([1.0, 0, 0, 1, 1, 0])
    for f in (
        lambda t, s: subsets.subset_log_prob(t, members, 3, s),
        lambda t, s: subsets.subset_entropy(t, 3, s),
        lambda t, s: subsets.marginals(t, 3, s),
    ):
        assert gradcheck(f, (x, temperature))
        assert gradgradcheck(f, (x, temperature))
    (slope,) = torch.autograd.grad(subsets.subset_log_prob(x, members, 3).sum(), x)
    assert_near(slope, members - subsets.marginals(x, 3), order=1)


def test_masks():
    x = random(3, 8)
    masked = x.index_fill(1, torch.tensor([1, 6]), -INF)
    present = x[:, [0, 2, 3, 4, 5, 7]]
    back = lambda t: t[:, [0, 2, 3, 4, 5, 7]]  # noqa: E731
    for k in (1, 4, 6):
        assert_near(back(subsets.marginals(masked, k)), subsets.marginals(present, k))
        assert_near(subsets.subset_entropy(masked, k), subsets.subset_entropy(present, k), factor=10)
        z = subsets.sample_subset(masked, k, sample_shape=(50,))
        assert (z[..., [1, 6]] == 0).all()
        logs = subsets.subset_log_prob(masked, z, k)
        assert_near(logs, subsets.subset_log_prob(present, z[..., [0, 2, 3, 4, 5, 7]], k), factor=10)
        leaf = masked.clone().requires_grad_()
        (slope,) = torch.autograd.grad(subsets.subset_log_prob(leaf, z[0], k).sum(), leaf)
        assert (slope[:, [1, 6]] == 0).all()
        assert slope.isfinite().all()
    z = torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0])
    assert (subsets.subset_log_prob(masked, z, 2) == -INF).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_rows_and_extreme_logits(dtype):
    x = (3 * torch.randn(4, 1000)).to(dtype).requires_grad_()
    y = subsets.marginals(x, 100)
    assert_near(y.double().sum(1), torch.full((4,), 100.0).double(), dtype=dtype, factor=10)
    (slope,) = torch.autograd.grad(y.square().sum(), x)
    assert slope.isfinite().all()
    assert slope.abs().max() > 1e-3
    extreme = torch.where(torch.rand(3, 400) < 0.3, 1e4, -1e4).to(dtype)
    extreme[:, :100] = 0.01 * torch.randn(3, 100).to(dtype)
    extreme[1, 50:] = -INF
    extreme.requires_grad_()
    for k in (1, 20, 49):
        y = subsets.marginals(extreme, k)
        assert ((y >= 0) & (y <= 1 + 1e-6)).all()
        assert_near(y.double().sum(1), torch.full((3,), float(k)).double(), dtype=dtype, factor=10)
        z = subsets.sample_subset(extreme, k, sample_shape=(5,))
        assert_identical(z.sum(-1), torch.full((5, 3), float(k)).to(dtype))
        assert (
            (subsets.subset_log_prob(extreme, z, k) <= 1e-3) & (subsets.subset_log_prob(extreme, z, k) > -1e3)
        ).all()
        (slope,) = torch.autograd.grad(y.square().sum(), extreme)
        assert slope.isfinite().all()


def test_relative_accuracy_of_small_marginals():
    """Nothing cancels: a marginal of 1e-40 is right to 12 digits, with a minority in or out."""
    theta = torch.tensor([[0.0, 1.0, 2.0, -90.0, 0.5, 1.5]], dtype=torch.float64)
    for k in (1, 2, 3, 4):
        mean, _, _ = enumerated(theta, k)
        torch.testing.assert_close(subsets.marginals(theta, k), mean, rtol=1e-12, atol=0)


def test_transforms():
    x = random(4, 6)
    members = torch.tensor([1.0, 0, 0, 1, 1, 0])
    for f in (
        lambda t: subsets.subset_log_prob(t, members, 3),
        lambda t: subsets.subset_entropy(t, 3),
        lambda t: subsets.marginals(t, 3).sin().sum(-1),
    ):
        assert_near(vmap(f)(x), f(x))
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(f(leaf).sum(), leaf)
        assert_near(vmap(grad(f))(x), expected, order=1)
        torch.compiler.reset()
        assert_near(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))
    z = vmap(lambda t: subsets.sample_subset(t, 2, sample_shape=(3,)), randomness="different")(x)
    assert_identical(z.sum(-1), torch.full((4, 3), 2.0).double())


@compiled
def test_operators():
    theta = random(3, 6).requires_grad_()
    ops = torch.ops.difflayers
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    kernels.marginals(theta, 2)
    opcheck(ops.subset_marginals.default, (theta, None, None, 2), test_utils=tests)
    opcheck(ops.subset_marginals.default, (theta, random(3, 6), None, 2), test_utils=tests)
    opcheck(ops.subset_marginals.default, (theta, random(3, 6), random(3, 6), 4), test_utils=tests)
    opcheck(ops.subset_log_normalizer.default, (theta, 2), test_utils=tests)
    opcheck(ops.subset_sample.default, (theta.detach(), torch.rand(3, 5, 6).double(), 2), test_utils=tests)
    for bad in (0, 6, -1):
        with pytest.raises(RuntimeError, match="k must be in"):
            ops.subset_marginals.default(theta.detach(), None, None, bad)
    with pytest.raises(RuntimeError, match="direction"):
        ops.subset_marginals.default(theta.detach(), random(3, 5), None, 2)
    with pytest.raises(RuntimeError, match="uniform"):
        ops.subset_sample.default(theta.detach(), torch.rand(3, 6).double(), 2)
    nan = theta.detach().clone()
    nan[1, 2] = math.nan
    assert_identical(kernels.marginals(nan, 2).isnan().sum(1), torch.tensor([0, 6, 0]))
    assert_identical(kernels.log_normalizer(nan, 2).isnan(), torch.tensor([False, True, False]))


WRONG = [
    (TypeError, "sample_shape", r"a tuple of sizes, got int", lambda x: subsets.sample_subset(x, 1, sample_shape=3)),
    (ValueError, "sample_shape", r"at least 0, got -1", lambda x: subsets.sample_subset(x, 1, sample_shape=(-1,))),
    (TypeError, "members", r"torch\.Tensor, got list", lambda x: subsets.subset_log_prob(x, [1.0, 0], 1)),
    (ValueError, "members", r"broadcastable .*4 elements.*got shape \(3,\)",
     lambda x: subsets.subset_log_prob(x, torch.ones(3), 1)),
    (ValueError, "members", r"zeros and ones", lambda x: subsets.subset_log_prob(x, torch.full((4,), 0.5), 2)),
    (ValueError, "members", r"sum to k = 2, got 3",
     lambda x: subsets.subset_log_prob(x, torch.tensor([1, 1, 1, 0]), 2)),
    (ValueError, "k", r"in \[0, 4\], got 5", lambda x: subsets.marginals(x, 5)),
    (ValueError, "k", r"in \[0, 4\], got 5", lambda x: subsets.subset_entropy(x, 5)),
    (ValueError, "logits", r"not contain NaN", lambda x: subsets.marginals(x * math.nan, 2)),
    (ValueError, "temperature", r"\(0,", lambda x: subsets.subset_entropy(x, 2, 0.0)),
]  # fmt: skip


@pytest.mark.parametrize(("error", "argument", "shown", "call"), WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input(error, argument, shown, call):
    with pytest.raises(error, match=rf"^difflayers\.subsets\.\w+: argument '{argument}' must .*{shown}"):
        call(torch.randn(2, 4))
