"""A rigid motion, or a similarity, between two sets of points in space."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from . import manifolds
from ._orthogonal import nearest_rotation
from ._triangles import on_a_line
from .solver import MinimalSolver, Solutions

__all__ = ["RigidTransform3D"]


class RigidTransform3D(MinimalSolver):
    r"""$X_2 = s R X_1 + t$ for pairs of points in space `(X1, Y1, Z1, X2, Y2, Z2)`; minimal sample 3.

    The model is $[sR \mid t]$, `[3, 4]`. A sample determines it by least squares, as `fit` does many points: R is the
    rotation nearest to the covariance of the two sets, $s = \operatorname{tr}(R^\top C) / \sum w |X_1 - \bar X_1|^2$.
    Its gradient is that of the least-squares problem, not of the singular value decomposition that solves it, and
    finite wherever the model is unique. The residual is the distance in the second set.

    Args:
        scale: whether s is fitted; else it is 1.

    Raises:
        TypeError: a scale that is no bool.

    Cost, transforms:
        A 3 x 3 singular value decomposition a model; O(n) memory. backward.

    References:
        Kabsch, "A solution for the best rotation to relate two sets of vectors", Acta Crystallographica A 1976;
        Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991.

    Example:
        >>> import torch, difflayers as dl
        >>> x = torch.eye(4)[:, :3]
        >>> model, _ = dl.ransac.RigidTransform3D(scale=True).fit(torch.cat([x, 2 * x + 1], -1), torch.ones(4))
        >>> model.round(decimals=4) + 0.0
        tensor([[2., 0., 0., 1.],
                [0., 2., 0., 1.],
                [0., 0., 2., 1.]])
    """

    sample_size, point_size, model_shape = 3, 6, (3, 4)
    kernel = "rigid"

    def __init__(self, scale: bool = False) -> None:
        self.scale = _checks.boolean("difflayers.ransac.RigidTransform3D", "scale", scale)
        self.problem = "similarity" if scale else "rigid"
        self.freedom = 7 if scale else 6

    def solve(self, sample: Tensor) -> Solutions:
        """Samples `[..., 3, 6]` -> motions `[..., 1, 3, 4]`."""
        models, valid, condition = self._fit(sample, torch.ones_like(sample[..., 0]))
        return Solutions(models.unsqueeze(-3), valid.unsqueeze(-1), condition.unsqueeze(-1))

    def fit(self, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted least squares: `[..., n, 6]`, `[..., n]` -> `[..., 3, 4]`."""
        return self._fit(points, weights)[:2]

    def _fit(self, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dtype, points, weights = points.dtype, points.double(), weights.double()
        weights, _ = torch.broadcast_tensors(weights, points[..., 0])
        total = weights.sum(-1, keepdim=True)
        share = (weights / torch.where(total > 0, total, 1)).unsqueeze(-1)
        mean = (share * points).sum(-2, keepdim=True)
        first, second = (points - mean).split(3, -1)
        covariance = (share * second).mT @ first
        rotation, spread = nearest_rotation(covariance, self.worst_condition**2)
        # the covariance is of second order in the points, and so is its conditioning
        condition = spread.sqrt()
        valid = (total.squeeze(-1) > 0) & (condition < 1 / torch.finfo(torch.float32).eps)
        if self.scale:
            size = (share * first).mul(first).sum((-2, -1))
            along = (rotation * covariance).sum((-2, -1))
            valid = valid & (size > 0) & (along > 0)
            factor = torch.where(valid, along, 1) / torch.where(valid, size, 1)
            rotation = factor[..., None, None] * rotation
        offset = mean[..., 0, 3:] - (rotation @ mean[..., 0, :3].unsqueeze(-1)).squeeze(-1)
        return torch.cat([rotation, offset.unsqueeze(-1)], -1).to(dtype), valid, condition.to(dtype)

    def residual(self, models: Tensor, points: Tensor) -> Tensor:
        """Distances `[..., n]` of $sRX_1 + t$ from $X_2$."""
        return self.squared_residual(models, points).sqrt()

    def squared_residual(self, models: Tensor, points: Tensor) -> Tensor:
        """The squares of the distances."""
        return self.residual_vector(models, points).square().sum(-1)

    def residual_vector(self, models: Tensor, points: Tensor) -> Tensor:
        """$sRX_1 + t - X_2$, `[..., n, 3]`."""
        return points[..., :3] @ models[..., :3].mT + models[..., None, :, 3] - points[..., 3:]

    def retract(self, models: Tensor, step: Tensor) -> Tensor:
        """Steps `[..., 6]` of rotation and translation, `[..., 7]` with the logarithm of the scale last."""
        return manifolds.retract_motion(models, step)

    def degenerate(self, sample: Tensor) -> Tensor:
        """Three points on a line, or two at one place, in either set."""
        return on_a_line(sample[..., :3]) | on_a_line(sample[..., 3:])

    def __repr__(self) -> str:
        return f"RigidTransform3D(scale={self.scale})"
