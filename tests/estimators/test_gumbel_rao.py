"""The law of the conditional keys, and what averaging over them does to the gradient."""

import math

import pytest
import torch

from difflayers import _random, estimators
from difflayers.estimators.gumbel_rao import conditional_keys

stats = pytest.importorskip("scipy.stats")
COUNT = 20_000


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return _random.exponential(shape, dtype=torch.float64, device=torch.device("cpu"), generator=generator)


LOGITS = torch.tensor([[1.0, -0.5, 2.0, 0.0]], dtype=torch.float64)


def test_the_chosen_key_is_the_largest():
    for index in range(4):
        keys = conditional_keys(LOGITS, torch.tensor([[index]]), noise(COUNT, 1, 4))
        assert (keys.argmax(2) == index).all()


@pytest.mark.parametrize("index", range(4))
def test_same_law_as_by_rejection(index):
    gumbel = _random.gumbel((40 * COUNT, 4), dtype=torch.float64, device=torch.device("cpu"), generator=None)
    keys = torch.log_softmax(LOGITS, 1) + gumbel
    accepted = keys[keys.argmax(1) == index][:COUNT]
    own = conditional_keys(LOGITS, torch.tensor([[index]]), noise(COUNT, 1, 4, seed=index))[:, 0]
    for j in range(4):
        assert stats.ks_2samp(own[:, j].numpy(), accepted[:, j].numpy()).pvalue > 1e-4
    for matrix in (own, accepted):  # and the same dependence among them
        matrix[:] = matrix.argsort(0).argsort(0)
    assert (torch.corrcoef(own.T) - torch.corrcoef(accepted.T)).abs().max() < 6 / math.sqrt(COUNT)


def test_over_all_samples_the_keys_are_gumbel_noise():
    p = torch.softmax(LOGITS, 1)[0]
    index = torch.multinomial(p, COUNT, replacement=True)[:, None]
    keys = conditional_keys(LOGITS.expand(COUNT, 4), index, noise(1, COUNT, 4))[0]
    for j in range(4):
        assert stats.kstest((keys[:, j] - p[j].log()).numpy(), stats.gumbel_r.cdf).pvalue > 1e-4


def test_masks_and_extreme_logits():
    rows = torch.tensor([[0.0, -math.inf, 1.0], [3e38, -3e38, 0.0], [-1e30, -1e30, -math.inf]])
    index = torch.tensor([[0], [0], [1]])
    keys = conditional_keys(rows, index, noise(50, 3, 3).float())
    assert not keys.isnan().any()
    assert (keys[:, 0, 1] == -math.inf).all()
    assert (keys[:, 2, 2] == -math.inf).all()
    assert (keys.argmax(2) == index[:, 0]).all()
    assert keys.amax(2).isfinite().all()


def test_same_mean_gradient_as_gumbel_softmax_with_less_variance():
    weights = torch.randn(4, 4, dtype=torch.float64)

    def gradients(run):
        leaf = LOGITS.expand(COUNT, 4).clone().requires_grad_()
        y = run(leaf)
        ((y @ weights) * y).sum().backward()
        return leaf.grad

    plain = gradients(lambda x: estimators.gumbel_softmax(x, 0.5, hard=True))
    averaged = gradients(lambda x: estimators.gumbel_rao(x, 0.5))
    one = gradients(lambda x: estimators.gumbel_rao(x, 0.5, samples=1))
    spread = (plain.var(0) / COUNT).sqrt()
    assert ((plain.mean(0) - averaged.mean(0)).abs() < 4.5 * 1.5 * spread).all()
    assert ((plain.mean(0) - one.mean(0)).abs() < 4.5 * 1.5 * spread).all()
    assert averaged.var(0).sum() < 0.9 * plain.var(0).sum()
    assert 0.9 < one.var(0).sum() / plain.var(0).sum() < 1.1
