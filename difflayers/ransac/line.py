"""A line in the plane."""

from __future__ import annotations

import torch
from torch import Tensor

from . import manifolds
from .solver import MinimalSolver, Solutions

__all__ = ["Line2D"]


class Line2D(MinimalSolver):
    r"""The line $a x + b y + c = 0$, $a^2 + b^2 = 1$, through 2 points `(x, y)`.

    The model is `(a, b, c)`; $(a, b, c)$ and $(-a, -b, -c)$ are the same line. The residual is the distance from
    the line.

    Cost, transforms:
        O(1) a sample, O(n) a fit; backward, double backward, torch.func.

    Example:
        >>> import torch, difflayers as dl
        >>> points = torch.tensor([[0.0, 1.0], [1.0, 3.0], [2.0, 5.0]])
        >>> (a, b, c), _ = dl.ransac.Line2D().fit(points, torch.ones(3))
        >>> round(float(-a / b), 4), round(float(-c / b), 4)  # y = 2 x + 1
        (2.0, 1.0)
    """

    sample_size, point_size, model_shape = 2, 2, (3,)
    kernel = problem = "line"
    freedom = 2

    def solve(self, sample: Tensor) -> Solutions:
        """Samples `[..., 2, 2]` -> lines `[..., 1, 3]`."""
        first, second = sample.double().unbind(-2)
        along = second - first
        length2 = along.square().sum(-1, keepdim=True)
        valid = length2 > 0
        # a safe length where the points coincide, so that the gradient there is zero and not NaN
        along = along / torch.where(valid, length2, 1.0).sqrt()
        normal = torch.stack([-along[..., 1], along[..., 0]], -1)
        offset = -(normal * (first + second) / 2).sum(-1, keepdim=True)
        models = torch.where(valid, torch.cat([normal, offset], -1), 0)
        return Solutions(models.to(sample.dtype).unsqueeze(-2), valid)

    def residual(self, models: Tensor, points: Tensor) -> Tensor:
        """Distances `[..., n]` of points `[..., n, 2]` from lines `[..., 3]`."""
        return self._signed(models, points).abs()

    def squared_residual(self, models: Tensor, points: Tensor) -> Tensor:
        """The squares of the distances."""
        return self._signed(models, points).square()

    def residual_vector(self, models: Tensor, points: Tensor) -> Tensor:
        """Signed distances, `[..., n, 1]`."""
        return self._signed(models, points).unsqueeze(-1)

    def retract(self, models: Tensor, step: Tensor) -> Tensor:
        """Steps `[..., 2]`: the normal turns, the offset changes."""
        return manifolds.retract_hyperplane(models, step)

    @staticmethod
    def _signed(models: Tensor, points: Tensor) -> Tensor:
        return (points * models[..., None, :2]).sum(-1) + models[..., 2:]

    def fit(self, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted total least squares: `[..., n, 2]`, `[..., n]` -> `[..., 3]`."""
        total = weights.sum(-1, keepdim=True)
        safe = torch.where(total > 0, total, 1.0)
        mean = (weights.unsqueeze(-1) * points).sum(-2) / safe
        x, y = (points - mean.unsqueeze(-2)).unbind(-1)
        xx, xy, yy = ((weights * product).sum(-1) for product in (x * x, x * y, y * y))
        # the normal is at angle (phi + pi) / 2 with phi = atan2(2 xy, xx - yy), the direction of most spread twice
        spread = torch.stack([xx - yy, 2 * xy], -1)
        size2 = spread.square().sum(-1)
        valid = (size2 > 0) & (total.squeeze(-1) > 0)
        angle = torch.atan2(torch.where(valid, 2 * xy, 0.0), torch.where(valid, xx - yy, 1.0)) / 2
        normal = torch.stack([-angle.sin(), angle.cos()], -1)
        return torch.cat([normal, -(normal * mean).sum(-1, keepdim=True)], -1), valid
