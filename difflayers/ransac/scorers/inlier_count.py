"""The score of RANSAC: how many inliers."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Scorer

__all__ = ["InlierCount"]


class InlierCount(Scorer):
    """The number of points whose residual is below the threshold; its gradient is zero.

    Cost, transforms:
        O(1) a residual, in the fused kernel on the CPU; backward gives zeros.

    References:
        Fischler, Bolles, "Random Sample Consensus: A Paradigm for Model Fitting with Applications to Image Analysis
        and Automated Cartography", Communications of the ACM 24, 1981.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.ransac.InlierCount().of_squared(torch.tensor([0.0, 0.25, 4.0]))
        tensor([1., 1., 0.])
    """

    kernel = "count"

    def of_squared(self, ratio: Tensor) -> Tensor:
        """1 for inliers, else 0; with a gradient, zero."""
        inside = ratio < 1
        # a detached result could not take part in a loss's backward pass
        return inside.to(ratio.dtype) + 0 * torch.where(inside, ratio, 0)

    def weight(self, ratio: Tensor) -> Tensor:
        """1 for inliers, else 0."""
        return (ratio < 1).to(ratio.dtype)
