"""Uniform sampling without replacement."""

from __future__ import annotations

import torch
from torch import Tensor

from ._draw import uniform_sets
from .base import Sampler, checked

__all__ = ["Uniform"]


class Uniform(Sampler):
    """Every set of points that may be drawn is equally likely; the logits only say which may not (-inf).

    Returns:
        Of `sample(logits, size, count)`: `[B, count, size]` int64.

    Raises:
        ValueError: of `sample`: NaN or +inf in logits, fewer finite ones than `size`, a shape other than `[B, N]`.

    Cost, transforms:
        O(N) a problem for the check of the logits, O(size^2) a sample whatever N. No gradient.

    References:
        Fisher, Yates, "Statistical Tables for Biological, Agricultural and Medical Research", 1938; Durstenfeld,
        "Algorithm 235: Random permutation", Communications of the ACM, 1964.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.ransac.Uniform().sample(torch.zeros(1, 5), 2, 3, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([1, 3, 2])
    """

    def sample(
        self, logits: Tensor, size: int, count: int, *, first: int = 0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws `[B, count, size]` different points."""
        return uniform_sets(checked(self, logits, size, count, first), size, count, generator)

    def needed(self, logits: Tensor, inliers: Tensor, size: int, confidence: float) -> Tensor:
        """As if all logits were the same."""
        return super().needed(torch.where(logits.isneginf(), logits, 0), inliers, size, confidence)
