"""Exact log-probabilities of draws without replacement, in log space and without cancellation."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["log_probability", "mass_outside"]

LARGEST_SET = 8  # points; the probability of a set is a sum over its subsets, 2^8 of them
NOTHING = -1e30  # the logarithm of no mass: finite, so that no derivative is inf - inf


def mass_outside(logits: Tensor, samples: Tensor) -> Tensor:
    r"""$\log \sum_{i \notin S} e^{\theta_i}$ of every sample S.

    The points that are not in S lie among all up to the heaviest of them, m, with some of S. What is subtracted from
    the mass of all up to m are points of S no heavier than m, at most k - 1: at most (k - 1) / k of it. What is
    heavier than m is in S and was never added.

    Args:
        logits: `[B, N]` float64, NOTHING where a point cannot be drawn.
        samples: `[B, H, k]` int64.

    Returns:
        `[B, H]` float64.
    """
    batch, n = logits.shape
    size = samples.shape[-1]
    with torch.no_grad():
        order = logits.argsort(-1, descending=True)
        place = torch.empty_like(order).scatter_(1, order, torch.arange(n, device=logits.device).expand(batch, n))
        place = place.gather(1, samples.flatten(1)).view(samples.shape)  # 0: the heaviest point
        # the smallest place that no point of the sample has
        taken = (place.unsqueeze(-1) == torch.arange(size, device=logits.device)).any(-2)
        heaviest = taken.long().cumprod(-1).sum(-1)
    heavy = logits.gather(1, order[:, :size])
    rest = torch.cat([logits.gather(1, order[:, size:]), logits.new_full((batch, 1), NOTHING)], -1)
    upto = [rest.logsumexp(-1)]
    for point in heavy.flip(-1).unbind(-1):
        upto.append(torch.logaddexp(upto[-1], point))
    mass = torch.stack(upto[::-1], -1).gather(1, heaviest)
    drawn = logits.gather(1, samples.flatten(1)).view(samples.shape)
    lighter = place > heaviest.unsqueeze(-1)
    share = torch.where(lighter, (torch.where(lighter, drawn, NOTHING) - mass.unsqueeze(-1)).exp(), 0)
    return mass + torch.log1p(-share.sum(-1))


def log_probability(logits: Tensor, samples: Tensor) -> Tensor:
    r"""The log-probability that Plackett-Luce draws give the sample: as a set up to 8 points, else in its order.

    With $R(A)$ the mass outside of A, the sum over all orders of a set S is $g(S) \prod_{s \in S} e^{\theta_s}$,
    $g(\emptyset) = 1$, $g(A) = \sum_{a \in A} g(A \setminus a) / R(A \setminus a)$: 2^k numbers a sample instead of k!.

    Args:
        logits: `[B, N]`, -inf where a point cannot be drawn.
        samples: `[B, H, k]` int64, different points each.

    Returns:
        `[B, H]` in the dtype of logits; -inf with zero gradient for a set with a point that cannot be drawn.
    """
    size = samples.shape[-1]
    exact = logits.double()
    exact = exact.masked_fill(exact.isneginf(), NOTHING)
    drawn = exact.gather(1, samples.flatten(1)).view(samples.shape)
    outside = mass_outside(exact, samples)
    if size <= LARGEST_SET:
        result = drawn.sum(-1) + _over_orders(drawn, outside)
    else:
        left = [outside]  # after all draws, after all but one, ...
        for point in drawn.flip(-1).unbind(-1):
            left.append(torch.logaddexp(left[-1], point))
        result = (drawn - torch.stack(left[:0:-1], -1)).sum(-1)
    possible = (drawn.detach() > NOTHING).all(-1)
    return torch.where(possible, result, -torch.inf).to(logits.dtype)


def _over_orders(drawn: Tensor, outside: Tensor) -> Tensor:
    """log g(S). Subsets are numbered by their bits; `[B, H, k]`, `[B, H]` -> `[B, H]`."""
    size = drawn.shape[-1]
    mass = outside.unsqueeze(-1)  # of the outside and of each subset
    for point in drawn.split(1, -1):
        mass = torch.cat([mass, torch.logaddexp(mass, point)], -1)
    left = mass.flip(-1)  # outside of a subset: of the outside of S and of the complement
    before = torch.zeros_like(outside).unsqueeze(-1)
    for subsets, predecessors in _subsets_by_size(size):
        before = (before - left[..., subsets])[..., predecessors.to(drawn.device)].logsumexp(-1)
    return before.squeeze(-1)


@cache
def _subsets_by_size(size: int) -> list[tuple[list[int], Tensor]]:
    """For each j below `size`: the subsets of j elements, and for each subset of j + 1 elements the places of its
    j + 1 predecessors among them, `[subsets, j + 1]`."""
    layers = [[a for a in range(2**size) if a.bit_count() == j] for j in range(size + 1)]
    result = []
    for smaller, larger in pairwise(layers):
        place = {a: i for i, a in enumerate(smaller)}
        rows = [[place[a ^ (1 << b)] for b in range(size) if a >> b & 1] for a in larger]
        result.append((smaller, torch.tensor(rows)))
    return result
