"""The estimators in plain differentiable PyTorch, given their noise: what every kernel is compared with.

Rows first: logits [B, n], noise as drawn by `_random`, temperature a float or [B, 1]. They are right to every order
of differentiation of their surrogate and under every transform, and run wherever there is no kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _random
from .._choice import Temperature, hardened
from . import tempered


def one_hot(index: Tensor, like: Tensor) -> Tensor:
    """[B, 1] indices -> [B, n]."""
    return torch.zeros_like(like).scatter(1, index, 1.0)


def sample(logits: Tensor, uniform: Tensor) -> Tensor:
    """[B, 1] indices distributed as softmax(logits): the inverse of the distribution function at `uniform`.

    The cumulative sum is taken in float64 and compared strictly, so a class of probability 0 is never drawn,
    and only one number per row has to be drawn.
    """
    logits = logits.detach()
    weights = (logits - logits.amax(1, keepdim=True)).exp()
    cumulative = weights.to(uniform.dtype).cumsum(1)
    index = (cumulative <= uniform * cumulative[:, -1:]).sum(1, keepdim=True)
    return index.clamp(max=logits.shape[1] - 1)  # rows of NaN


def gumbel_softmax(logits: Tensor, temperature: Temperature, bits: Tensor, hard: bool) -> Tensor:
    """softmax((logits + Gumbel noise) / temperature), or its largest entry with that gradient."""
    keys = logits + _random.gumbel_of(bits, logits.dtype)
    soft = tempered.softmax(keys, temperature)
    # the largest key, not the largest weight: at high temperature the weights tie
    return hardened(one_hot(keys.detach().argmax(1, keepdim=True), soft), soft) if hard else soft


def straight_through(logits: Tensor, temperature: Temperature, index: Tensor) -> Tensor:
    """The sample, with the gradient of softmax(logits / temperature)."""
    return hardened(one_hot(index, logits), tempered.softmax(logits, temperature))


def reinmax(logits: Tensor, temperature: Temperature, index: Tensor) -> Tensor:
    """The sample D, with the gradient of 2 pi_D - pi / 2, where pi_D = (softmax(logits / temperature) + D) / 2.

    pi_D enters as the softmax of shifted logits, the shift being a constant: its Jacobian is then that of a
    softmax at pi_D, diag(pi_D) - pi_D pi_D^T (Algorithm 2 of the paper).
    """
    chosen = one_hot(index, logits)
    middle = (tempered.softmax(logits, temperature) + chosen) / 2
    shift = torch.where(logits > -torch.inf, middle.log() - logits, 0.0).detach()
    return hardened(chosen, 2 * torch.softmax(logits + shift, 1) - 0.5 * torch.softmax(logits, 1))
