"""PROSAC: the best points first, then more and more of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _checks, _random
from ._draw import distinct
from .base import Sampler, checked, draws_needed

__all__ = ["PROSAC"]

ACCIDENT = 0.1  # the share of points that a wrong model may have as inliers
SURPLUS = 5  # inliers besides its sample that a right one has at least


class PROSAC(Sampler):
    r"""Draws from the points with the largest logits first and from all of them in the end.

    Of uniform draws of k from N points, $T_N$ in number, $T_n = T_N \binom{n}{k} / \binom{N}{k}$ would lie within the
    n best. The t-th draw takes the n-th best point and k - 1 uniformly of those above it, n the smallest with
    $T'_n \ge t$, $T'_k = 1$, $T'_{n + 1} = T'_n + \lceil T_{n + 1} - T_n \rceil$. So the same samples come in a better
    order, and only the order of the logits matters. Draws after $T'_N$ are uniform. They are not identically
    distributed: PROSAC is for estimating, not for training. It may also end sooner: as soon as, for any n, so many of
    the n best points are inliers that a good sample would have been among the draws from them.

    Args:
        draws: $T_N$, after how many draws the sampler is as good as uniform.

    Returns:
        Of `sample(logits, size, count, first=t)`: draws t + 1 to t + count, `[B, count, size]` int64.

    Raises:
        TypeError, ValueError: draws is not a positive integer; of `sample`: NaN or +inf in logits, fewer finite ones
            than `size`, a shape other than `[B, N]`.

    Cost, transforms:
        A sort of the logits, then O(size^2 + log N) a sample. No gradient.

    References:
        Chum, Matas, "Matching with PROSAC - Progressive Sample Consensus", CVPR 2005, equations 1-5 and section 2.2.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.ransac.PROSAC().sample(torch.tensor([[0.1, 0.9, 0.3, 0.8]]), 2, 1).sort().values  # the two best
        tensor([[[1, 3]]])
    """

    def __init__(self, draws: int = 200_000) -> None:
        self.draws = _checks.integer("difflayers.ransac.PROSAC", "draws", draws, minimum=1)

    def sample(
        self, logits: Tensor, size: int, count: int, *, first: int = 0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws `[B, count, size]` different points."""
        logits = checked(self, logits, size, count, first)
        batch, n = logits.shape
        order = logits.sort(dim=-1, descending=True, stable=True).indices
        number = (~logits.isneginf()).sum(-1, keepdim=True)
        draw = torch.arange(first + 1, first + count + 1, device=logits.device).expand(batch, -1)
        pool = torch.searchsorted(self._growth(n, number, size), draw.double().contiguous()) + size
        progressive = pool <= number  # else all T'_N draws have been made
        pool = torch.minimum(pool, number)
        uniform = _random.uniform((batch, count, size), device=logits.device, generator=generator)
        among = distinct(pool, uniform)
        above = torch.cat([distinct(pool - 1, uniform[..., 1:]), pool.unsqueeze(-1) - 1], -1)
        drawn = torch.where(progressive.unsqueeze(-1), above, among)
        return order.gather(1, drawn.flatten(1)).view(drawn.shape)

    def _growth(self, n: int, number: Tensor, size: int) -> Tensor:
        """$T'_k ... T'_N$ of problems with `number [B, 1]` of n points, `[B, n - k + 1]`, rising to the last of each;
        inf beyond."""
        best = torch.arange(size, n + 1, device=number.device)
        within = torch.full((len(number), len(best)), float(self.draws), dtype=torch.float64, device=number.device)
        for i in range(size):
            within = within * (best - i) / (number - i)
        # a whole number that rounding has lifted stays what it is
        steps = (within.diff(dim=-1) - 1e-9).ceil()
        growth = torch.cat([torch.ones_like(within[:, :1]), steps], -1).cumsum(-1)
        return growth.masked_fill(best > number, torch.inf)

    def needed(self, logits: Tensor, inliers: Tensor, size: int, confidence: float) -> Tensor:
        """The fewest for any number n of best points that so many draws come from, `[B]`.

        Of those n more have to be inliers than would be by accident; of all points that is not asked."""
        order = logits.sort(dim=-1, descending=True, stable=True).indices
        number = (~logits.isneginf()).sum(-1, keepdim=True)
        among = (inliers & ~logits.isneginf()).gather(-1, order).long().cumsum(-1)[:, size - 1 :].double()
        best = torch.arange(size, logits.shape[-1] + 1, device=logits.device, dtype=torch.float64)
        success = torch.ones_like(among)
        for i in range(size):
            success = success * (among - i).clamp(min=0) / (best - i)
        needed = draws_needed(success, confidence)
        others = best - size
        by_accident = (ACCIDENT * others + 3 * (ACCIDENT * (1 - ACCIDENT) * others).sqrt()).clamp(min=SURPLUS)
        credible = (among - size >= by_accident) & (needed <= self._growth(logits.shape[-1], number, size))
        usable = torch.where(best == number, True, credible & (best < number))
        return torch.where(usable, needed, torch.inf).amin(-1)

    def __repr__(self) -> str:
        return f"PROSAC(draws={self.draws})"
