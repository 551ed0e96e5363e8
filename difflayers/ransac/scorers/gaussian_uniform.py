"""The likelihood of a Gaussian for inliers and a uniform distribution for outliers."""

from __future__ import annotations

import math

from torch import Tensor, nn

from ... import _checks
from .base import Scorer

__all__ = ["GaussianUniform"]


class GaussianUniform(Scorer, nn.Module):
    r"""The likelihood of residuals that are Gaussian for inliers and uniform for outliers.

    $$s = \frac{\log(e^{-r^2 / 2 (\sigma t)^2} + c) - \log c}{\log(1 + c) - \log c}$$

    for the threshold $t$: 1 at $r = 0$, 0 far away, smooth everywhere, so that points just outside the threshold pull
    at the model too. With the default numbers it equals the score of MAGSAC++ (`MAGSAC`) to within 0.004.

    Args:
        sigma: of the inliers' noise, as a multiple of the threshold; a positive number, or a scalar tensor. An
            `nn.Parameter` trains.
        uniform: c, the density of outliers relative to the inliers' at r = 0, in [1e-6, 1e6].

    Raises:
        TypeError, ValueError: a number out of its range, sigma not a scalar.

    Cost, transforms:
        O(1) a residual, in the fused kernel on the CPU; backward, by models, points, threshold and sigma.

    References:
        Shekhovtsov, "Scores of robust estimators", 2025, arXiv 2512.19850 (the equivalence to MAGSAC++).
        Torr, Zisserman, "MLESAC", Computer Vision and Image Understanding 78, 2000 (the mixture).

    Example:
        >>> import torch, difflayers as dl
        >>> dl.ransac.GaussianUniform().of_squared(torch.tensor([0.0, 0.25, 1.0])).round(decimals=3)
        tensor([1.0000, 0.2580, 0.0020])
    """

    kernel = "gaussian_uniform"

    def __init__(self, sigma: float | Tensor = 0.273, uniform: float = 0.82) -> None:
        super().__init__()
        function = "difflayers.ransac.GaussianUniform"
        self.uniform = _checks.number(function, "uniform", uniform, minimum=1e-6, maximum=1e6)
        if not isinstance(sigma, Tensor):
            self.sigma: float | Tensor = _checks.number(function, "sigma", sigma, above=0)
            return
        if sigma.dim() != 0:
            raise ValueError(
                f"{function}: argument 'sigma' must be a number or a scalar tensor, got shape {tuple(sigma.shape)}; "
                f"for a scale for each problem give RANSAC a tensor as threshold"
            )
        sigma = _checks.positive_tensor(function, "sigma", sigma)
        if isinstance(sigma, nn.Parameter):
            self.sigma = sigma
        else:
            self.register_buffer("sigma", sigma)

    def _density(self, ratio: Tensor) -> Tensor:
        """exp(-r^2 / 2 sigma^2)."""
        return (ratio * (-0.5 / self.sigma**2)).exp()

    def of_squared(self, ratio: Tensor) -> Tensor:
        """s, elementwise."""
        return (self._density(ratio) / self.uniform).log1p() / math.log1p(1 / self.uniform)

    def weight(self, ratio: Tensor) -> Tensor:
        """`inlier_probability` over its value at 0."""
        return self.inlier_probability(ratio) * (1 + self.uniform)

    def inlier_probability(self, ratio: Tensor) -> Tensor:
        """The probability that a point with this ratio is an inlier, e / (e + c) with e the Gaussian."""
        density = self._density(ratio)
        return density / (density + self.uniform)

    @property
    def kernel_scale(self) -> Tensor | float:
        """sigma."""
        return self.sigma.abs() if isinstance(self.sigma, Tensor) else self.sigma

    @property
    def kernel_parameter(self) -> float:
        """c."""
        return self.uniform

    def __repr__(self) -> str:
        sigma = self.sigma.item() if isinstance(self.sigma, Tensor) else self.sigma
        return f"GaussianUniform(sigma={sigma:.4g}, uniform={self.uniform:g})"
