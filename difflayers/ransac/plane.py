"""A plane in space."""

from __future__ import annotations

import torch
from torch import Tensor

from . import manifolds
from ._orthogonal import smallest_eigenvector
from ._triangles import on_a_line
from .solver import MinimalSolver, Solutions

__all__ = ["Plane3D"]


class Plane3D(MinimalSolver):
    r"""The plane $n^\top x + d = 0$, $|n| = 1$, through 3 points `(x, y, z)`.

    The model is `(n1, n2, n3, d)`; the same with all signs changed is the same plane. The residual is the distance
    from the plane.

    Cost, transforms:
        O(1) a sample; a fit takes an eigendecomposition of a 3 x 3 matrix, whose gradient needs none and is finite
        where the plane is unique. backward, double backward of samples.

    Example:
        >>> import torch, difflayers as dl
        >>> points = torch.tensor([[0.0, 0.0, 2.0], [1.0, 0.0, 2.0], [0.0, 1.0, 2.0], [5.0, 5.0, 2.0]])
        >>> model, _ = dl.ransac.Plane3D().fit(points, torch.ones(4))
        >>> model.abs().round(decimals=4)
        tensor([0., 0., 1., 2.])
    """

    sample_size, point_size, model_shape = 3, 3, (4,)
    kernel = problem = "plane"
    freedom = 3

    def solve(self, sample: Tensor) -> Solutions:
        """Samples `[..., 3, 3]` -> planes `[..., 1, 4]`."""
        corners = sample.double()
        edges = corners[..., 1:, :] - corners[..., :1, :]
        normal = torch.linalg.cross(edges[..., 0, :], edges[..., 1, :])
        length2 = normal.square().sum(-1, keepdim=True)
        valid = length2 > 0
        # a safe length where the points are on a line, so that the gradient there is zero and not NaN
        normal = normal / torch.where(valid, length2, 1).sqrt()
        offset = -(normal * corners.mean(-2)).sum(-1, keepdim=True)
        models = torch.where(valid, torch.cat([normal, offset], -1), 0)
        return Solutions(models.to(sample.dtype).unsqueeze(-2), valid)

    def residual(self, models: Tensor, points: Tensor) -> Tensor:
        """Distances `[..., n]` of points `[..., n, 3]` from planes `[..., 4]`."""
        return self._signed(models, points).abs()

    def squared_residual(self, models: Tensor, points: Tensor) -> Tensor:
        """The squares of the distances."""
        return self._signed(models, points).square()

    def residual_vector(self, models: Tensor, points: Tensor) -> Tensor:
        """Signed distances, `[..., n, 1]`."""
        return self._signed(models, points).unsqueeze(-1)

    @staticmethod
    def _signed(models: Tensor, points: Tensor) -> Tensor:
        return (points * models[..., None, :3]).sum(-1) + models[..., 3:]

    def fit(self, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted total least squares: `[..., n, 3]`, `[..., n]` -> `[..., 4]`."""
        dtype, points, weights = points.dtype, points.double(), weights.double()
        total = weights.sum(-1, keepdim=True)
        share = (weights / torch.where(total > 0, total, 1)).unsqueeze(-1)
        mean = (share * points).sum(-2, keepdim=True)
        centered = points - mean
        normal, spread = smallest_eigenvector((share * centered).mT @ centered, self.worst_condition**2)
        offset = -(normal * mean.squeeze(-2)).sum(-1, keepdim=True)
        valid = (total.squeeze(-1) > 0) & (spread < 1e12)
        return torch.cat([normal, offset], -1).to(dtype), valid

    def retract(self, models: Tensor, step: Tensor) -> Tensor:
        """Steps `[..., 3]`: the normal turns, the offset changes by the last."""
        return manifolds.retract_hyperplane(models, step)

    def degenerate(self, sample: Tensor) -> Tensor:
        """Three points on a line, or two at one place."""
        return on_a_line(sample)
