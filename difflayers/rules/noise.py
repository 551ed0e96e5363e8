"""The noise that rules add to costs, and the scores of its densities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _random

DENSITIES = ("gaussian", "gumbel")


def draw(
    density: str, count: int, like: Tensor, generator: torch.Generator | None, *, antithetic: bool = False
) -> Tensor:
    """`[count, *like.shape]` of standard noise; with antithetic=True the second half is minus the first.

    Samples come first, so that the batch dimensions of per-instance parameters still broadcast to the costs.
    """
    shape = (count // 2 if antithetic else count, *like.shape)
    options = {"dtype": like.dtype, "device": like.device, "generator": generator}
    if density == "gumbel":
        return -_random.gumbel(shape, **options)  # minimisation: the costs are minus the scores of Gumbel-max
    noise = _random.normal(shape, **options)
    return torch.cat([noise, -noise]) if antithetic else noise


def score(density: str, noise: Tensor) -> Tensor:
    r"""The derivative of $-\log$ of the density, at `noise`."""
    return noise if density == "gaussian" else noise.exp() - 1.0


def sum_of_gamma(count: int, like: Tensor, k: float, terms: int, generator: torch.Generator | None) -> Tensor:
    r"""`[count, *like.shape]` of $\frac1k \left(\sum_{i=1}^{s} \Gamma(\tfrac1k, \tfrac ki) - \log s\right)$.

    The shape of the distributions is 1/k and their scale k/i. The sum of k such numbers is, as the number s of terms
    grows, standard Gumbel noise.
    """
    total = torch.zeros((count, *like.shape), dtype=like.dtype, device=like.device)
    concentration = torch.full_like(total, 1.0 / k)
    for i in range(1, terms + 1):  # one after another: all at once would need `terms` times the memory
        total += torch._standard_gamma(concentration, generator=generator) * (k / i)  # pyright: ignore
    return (total - math.log(terms)) / k
