"""Relaxed subset sampling: k softmaxes of logits with Gumbel noise, one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from .._choice import Temperature
from ._base import Subset, SubsetModule, best

__all__ = ["GumbelTopK", "gumbel_topk"]


def gumbel_topk(
    logits: Tensor,
    k: int,
    temperature: Temperature = 1.0,
    *,
    hard: bool = False,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""A relaxed sample of k of n without replacement.

    With Gumbel noise G and $w^1 = \text{logits} + G$,

    $$a^j = \mathrm{softmax}(w^j / \tau), \qquad w^{j+1} = w^j + \log(1 - a^j), \qquad m = \sum_{j=1}^k a^j.$$

    As the temperature goes to 0 this becomes the set of the k largest of logits + G, which is a sample of k elements
    drawn one after the other, without replacement, each with probability proportional to exp(logits) among those
    left. (`sample_subset` and `simple` sample another distribution, with other marginals.)

    Args:
        logits: `[..., n]`, any floating dtype; -inf = masked, never a member.
        k: in [0, n]; at most the number of elements that are not masked.
        temperature: larger is softer; a positive number or a tensor broadcastable to logits with size 1 at `dim` (it
            gets a gradient). 0.1 to 0.5 are usual: from about 1 on, an element that was chosen is hardly removed.
        hard: the exact k largest of logits + G forward, the gradient of the relaxation backward.
        dim: the dimension to choose along.
        generator: of the noise, on the logits' device.

    Returns:
        The shape and dtype of logits, at least 0, summing to k; **entries can exceed 1**. With hard=True zeros and
        ones.
        Where only k elements are present they are the members, exactly.

    Raises:
        TypeError: logits or a tensor temperature is not a floating-point tensor; an argument has the wrong type.
        ValueError: generator on another device; k, temperature or dim out of range; NaN or +inf logits; fewer than k
            elements present.

    Cost:
        O(n k) time and memory (about 5 n k floats kept for backward) per row; k steps, one after the other.

    Transforms:
        backward, double backward, torch.func.grad/jacrev, vmap with randomness="different" or "same",
        torch.compile(fullgraph=True) with generator=None.

    References:
        Xie and Ermon, "Reparameterizable Subset Sampling via Continuous Relaxations", IJCAI 2019,
        arXiv 1901.10517. Here log(1 - a) is exact also where a rounds to 1.

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers import subsets
        >>> m = subsets.gumbel_topk(torch.randn(3, 6), 2, 0.1)
        >>> m.shape, m.sum(-1).round(decimals=4)
        (torch.Size([3, 6]), tensor([2., 2., 2.]))
    """
    function = "difflayers.subsets.gumbel_topk"
    choice = Subset(function, logits, k, temperature, hard=hard, dim=dim, generator=generator)
    if choice.certain:
        return choice.finish(lambda: choice.rows)
    keys = choice.rows + choice.gumbel()
    return choice.finish(lambda: _successive(*choice.scaled(keys), choice.k), lambda: best(keys, choice.k))


def _successive(theta: Tensor, temperature: Tensor, k: int) -> Tensor:
    """The sum of k softmaxes of theta = w / temperature [B, n], finite; temperature [B, 1]."""
    total = torch.softmax(theta, 1)
    chosen = total
    # below this the quotient would overflow, as it can where the temperature is tiny
    least = -torch.finfo(theta.dtype).max / 8 * temperature.detach()
    for _ in range(k - 1):
        # log(1 - a): where a is nearly 1, from what the others sum to, so that it is never the logarithm of 0
        large = chosen > 0.5
        others = torch.where(large, -torch.inf, theta).logsumexp(1, keepdim=True)
        rest = torch.where(large, others - theta.logsumexp(1, keepdim=True), torch.where(large, 0.0, -chosen).log1p())
        theta = theta + torch.maximum(rest, least) / temperature
        chosen = torch.softmax(theta, 1)
        total = total + chosen
    return total


class GumbelTopK(SubsetModule):
    """`difflayers.subsets.gumbel_topk` as a module.

    Args:
        k, hard, dim: see `difflayers.subsets.gumbel_topk`.
        temperature: a number, a tensor (kept as a buffer) or a schedule of `difflayers.schedules`.

    Returns:
        The module. Called as `module(logits, *, generator=None)`: the membership.

    Raises:
        As the function, at construction where the input is not needed.

    Cost, transforms, references: see the function.

    Example:
        >>> import torch, difflayers as dl
        >>> from difflayers import subsets
        >>> subsets.GumbelTopK(2, dl.schedules.Exponential(1.0, 0.1, steps=100), hard=True)(torch.zeros(5)).sum()
        tensor(2.)
    """

    function = "difflayers.subsets.GumbelTopK"

    def forward(self, logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return gumbel_topk(logits, self.k, self.temperature, hard=self.hard, dim=self.dim, generator=generator)
