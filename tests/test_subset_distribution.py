"""The distribution of exactly k of n, against enumeration."""

import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.distributions import kl_divergence

from difflayers.distributions import KSubset
from tests.tolerances import assert_near

F64 = torch.float64


def laws(k=2, n=5):
    logits = torch.randn(3, n, dtype=F64)
    law = KSubset(k, logits, 0.7)
    every = law.enumerate_support()
    weights = (every * logits / 0.7).sum(-1).softmax(0)
    return law, every, weights


@pytest.mark.parametrize(("k", "n"), [(0, 3), (1, 4), (2, 5), (3, 3)])
def test_against_enumeration(k, n):
    law, every, weights = laws(k, n)
    assert every.shape == (math.comb(n, k), 3, n)
    assert every.unique(dim=0).shape == every.shape
    assert_near(law.log_prob(every), weights.log())
    assert_near(law.mean, (weights[..., None] * every).sum(0))
    assert_near(law.variance, (weights[..., None] * (every - law.mean).square()).sum(0))
    assert_near(law.entropy(), -(weights * weights.log()).sum(0), factor=10)
    assert_near(law.mode, every.gather(0, weights.argmax(0)[None, :, None].expand(1, 3, n))[0])


def test_samples_follow_the_law():
    law, every, weights = laws()
    z = law.sample((20_000,), generator=torch.Generator().manual_seed(0))
    assert z.shape == (20_000, 3, 5)
    counts = (z[:, None] == every[None]).all(-1).double().mean(0)
    assert ((counts - weights).abs() <= 4.5 * (weights * (1 - weights) / 20_000).sqrt()).all()


def test_rsample_has_the_gradient_of_the_marginals():
    logits = torch.randn(4, dtype=F64, requires_grad=True)
    law = KSubset(2, logits)
    weight = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=F64)
    z = law.rsample((3,))
    assert z.shape == (3, 4)
    (gradient,) = torch.autograd.grad((z * weight).sum(), logits)
    (expected,) = torch.autograd.grad(3 * (law.mean * weight).sum(), logits)
    assert_near(gradient, expected, order=1)


def test_derivatives():
    logits = torch.randn(2, 4, dtype=F64, requires_grad=True)
    z = KSubset(2, logits).sample()
    assert gradcheck(lambda x: KSubset(2, x).log_prob(z), logits)
    assert gradcheck(lambda x: KSubset(2, x).entropy(), logits)
    assert gradcheck(lambda x: kl_divergence(KSubset(2, x), KSubset(2, x.flip(1), 2.0)), logits)


def test_kl_divergence():
    p, every, weights = laws()
    q = KSubset(2, torch.randn(3, 5, dtype=F64))
    expected = (weights * (weights.log() - q.log_prob(every))).sum(0)
    assert_near(kl_divergence(p, q), expected, factor=10)
    assert_near(kl_divergence(p, p), torch.zeros(3, dtype=F64), factor=10)
    masked = torch.tensor([0.3, -math.inf, 0.1, 1.0], dtype=F64)
    uniform = KSubset(2, torch.tensor([0.0, -math.inf, 0.0, 0.0], dtype=F64))
    law = KSubset(2, masked)
    assert_near(kl_divergence(law, uniform), math.log(3) - law.entropy(), factor=10)
    assert kl_divergence(KSubset(2, torch.zeros(4)), KSubset(2, masked.float())) == math.inf
    with pytest.raises(ValueError, match=r"same size, got 2 of 4 and 1 of 4"):
        kl_divergence(law, KSubset(1, masked))


def test_expand_and_shapes():
    law, every, _ = laws()
    wide = law.expand((2, 3))
    assert wide.batch_shape == (2, 3)
    assert wide.sample((7,)).shape == (7, 2, 3, 5)
    assert_near(wide.log_prob(every[0]), law.log_prob(every[0]).expand(2, 3))
    assert law.enumerate_support(expand=False).shape == (10, 1, 5)


def test_bad_input():
    with pytest.raises(ValueError, match=r"KSubset: argument 'k' must be in \[0, 4\], got 5"):
        KSubset(5, torch.zeros(4))
    with pytest.raises(TypeError, match=r"argument 'logits' must be a torch\.Tensor, got list"):
        KSubset(1, [0.0])
    with pytest.raises(ValueError, match=r"argument 'temperature' must be a finite number in \(0"):
        KSubset(1, torch.zeros(4), 0.0)
    for bad in ([1.0, 1.0, 1.0, 0.0], [0.5, 0.5, 1.0, 0.0]):
        with pytest.raises(ValueError, match="support"):
            KSubset(2, torch.zeros(4)).log_prob(torch.tensor(bad))
    pairs = list(itertools.combinations(range(4), 2))
    assert len(pairs) == len(KSubset(2, torch.zeros(4)).enumerate_support())
