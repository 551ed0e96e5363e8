"""MSAC: least squares, truncated."""

from __future__ import annotations

from torch import Tensor

from .base import Scorer

__all__ = ["MSAC"]


class MSAC(Scorer):
    r"""Least squares, truncated: $s = \max(0, 1 - r^2 / t^2)$ for the threshold $t$.

    Cost, transforms:
        O(1) a residual, in the fused kernel on the CPU; backward, by models, points and threshold.

    References:
        Torr, Zisserman, "MLESAC: A New Robust Estimator with Application to Estimating Image Geometry", Computer
        Vision and Image Understanding 78, 2000, section 3.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.ransac.MSAC().of_squared(torch.tensor([0.0, 0.25, 4.0]))
        tensor([1.0000, 0.7500, 0.0000])
    """

    kernel = "msac"

    def of_squared(self, ratio: Tensor) -> Tensor:
        """s, elementwise."""
        return (1 - ratio).clamp(min=0)

    def weight(self, ratio: Tensor) -> Tensor:
        """1 for inliers, else 0."""
        return (ratio < 1).to(ratio.dtype)
