"""A homography between two images of a plane."""

from __future__ import annotations

import torch
from torch import Tensor

from . import residuals
from ._implicit_solve import ImplicitSolver

__all__ = ["Homography"]


class Homography(ImplicitSolver):
    r"""$x_2 \sim H x_1$ for point pairs `(x1, y1, x2, y2)`; minimal sample 4.

    The model is `[3, 3]` of unit Frobenius norm, its sign free. The residual is the transfer error, the distance of
    $x_2$ from $H x_1$ in the second image.
    """

    sample_size, point_size, model_shape = 4, 4, (3, 3)
    problem = "homography"
    kernel = "transfer"

    def residual(self, models: Tensor, points: Tensor) -> Tensor:
        """Transfer errors `[..., n]`; infinite for points that the model maps to infinity."""
        return self.squared_residual(models, points).sqrt()

    def squared_residual(self, models: Tensor, points: Tensor) -> Tensor:
        """Squared transfer errors."""
        return residuals.squared("transfer", models, points)

    def equations(self, models: Tensor, sample: Tensor) -> Tensor:
        """`[V, 8]`: h1 x - u h3 x and h2 x - v h3 x of each pair."""
        ones = torch.ones_like(sample[..., :1])
        a, b, c = (torch.cat([sample[..., :2], ones], -1) @ models.mT).unbind(-1)
        return torch.cat([a - sample[..., 2] * c, b - sample[..., 3] * c], -1)

    def tangent(self, models: Tensor, sample: Tensor) -> Tensor:
        """`[V, 8, 3, 3]`: orthonormal directions across the model."""
        h = models.flatten(1).unsqueeze(1)
        return torch.linalg.svd(h, full_matrices=True).Vh[:, 1:].unflatten(-1, (3, 3))

    def reference(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """The null vector of the direct linear transform."""
        x, y, u, v = sample.unbind(-1)
        one, zero = torch.ones_like(x), torch.zeros_like(x)
        first = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y, -u], -1)
        second = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y, -v], -1)
        _, singular, right = torch.linalg.svd(torch.cat([first, second], 1), full_matrices=True)
        counts = (singular[:, 7] > 1e-12 * singular[:, 0]).long()
        return right[:, 8:].unflatten(-1, (3, 3)), counts
