"""A circle in the plane."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import implicit
from ._triangles import on_a_line
from .solver import MinimalSolver, Solutions

__all__ = ["Circle2D"]

STEPS = 30  # of the geometric fit; it converges in about 5 unless the points hardly determine a circle


class Circle2D(MinimalSolver):
    r"""The circle $|x - c| = r$ through 3 points `(x, y)`.

    The model is `(c1, c2, r)`, r > 0. The residual is the distance from the circle. `fit` minimises the sum of its
    weighted squares, by Gauss and Newton's method from the algebraic solution; its gradient is that of the minimum.

    Cost, transforms:
        O(1) a sample; up to 30 passes over the points a fit. backward; a fit is not traced by torch.func.

    Example:
        >>> import torch, difflayers as dl
        >>> points = torch.tensor([[3.0, 0.0], [1.0, 2.0], [-1.0, 0.0], [1.0, -2.0]])
        >>> model, _ = dl.ransac.Circle2D().fit(points, torch.ones(4))
        >>> model.round(decimals=4) + 0.0
        tensor([1., 0., 2.])
    """

    sample_size, point_size, model_shape = 3, 2, (3,)
    kernel = problem = "circle"
    freedom = 3

    def solve(self, sample: Tensor) -> Solutions:
        """Samples `[..., 3, 2]` -> circles `[..., 1, 3]`."""
        corners = sample.double()
        start = corners[..., 0, :]
        (ax, ay), (bx, by) = ((corners[..., i, :] - start).unbind(-1) for i in (1, 2))
        aa, bb = ax * ax + ay * ay, bx * bx + by * by
        area = 2 * (ax * by - ay * bx)
        valid = area != 0
        # a safe area where the points are on a line, so that the gradient there is zero and not NaN
        safe = torch.where(valid, area, 1)
        to_center = torch.stack([(by * aa - ay * bb) / safe, (ax * bb - bx * aa) / safe], -1)
        square = to_center.square().sum(-1, keepdim=True)
        radius = torch.where(valid.unsqueeze(-1), square, 1).sqrt()
        models = torch.where(valid.unsqueeze(-1), torch.cat([start + to_center, radius], -1), 0)
        return Solutions(models.to(sample.dtype).unsqueeze(-2), valid.unsqueeze(-1))

    def residual(self, models: Tensor, points: Tensor) -> Tensor:
        """Distances `[..., n]` of points `[..., n, 2]` from circles `[..., 3]`."""
        return self._signed(models, points).abs()

    def squared_residual(self, models: Tensor, points: Tensor) -> Tensor:
        """The squares of the distances."""
        return self._signed(models, points).square()

    def residual_vector(self, models: Tensor, points: Tensor) -> Tensor:
        """Signed distances, `[..., n, 1]`."""
        return self._signed(models, points).unsqueeze(-1)

    @staticmethod
    def _signed(models: Tensor, points: Tensor) -> Tensor:
        square = (points - models[..., None, :2]).square().sum(-1)
        # at the center the distance has no derivative; zero stands in for NaN
        at_center = square == 0
        return torch.where(at_center, 0, torch.where(at_center, 1, square).sqrt()) - models[..., 2:]

    def fit(self, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted geometric least squares: `[..., n, 2]`, `[..., n]` -> `[..., 3]`."""
        dtype = points.dtype
        weights, _ = torch.broadcast_tensors(weights.double(), points[..., 0])
        points = points.double().expand(*weights.shape, 2)
        with torch.no_grad():
            total = weights.sum(-1, keepdim=True)
            share = weights / torch.where(total > 0, total, 1)
            mean = (share.unsqueeze(-1) * points).sum(-2, keepdim=True)
            size = (share.unsqueeze(-1) * (points - mean).square()).sum((-2, -1), keepdim=True).sqrt()
            size = torch.where(size > 0, size, 1)
            found, valid = self._minimised((points - mean) / size, share)
        valid = valid & (total.squeeze(-1) > 0)
        scale, origin = size.squeeze(-1), mean.squeeze(-2)
        inside = weights / torch.where(total > 0, total, 1)

        def slope(circle: Tensor, at: Tensor, of_points: Tensor) -> Tensor:
            residual = self._signed(circle, at)
            away = at - circle[..., None, :2]
            distance = (residual + circle[..., 2:]).unsqueeze(-1)
            unit = away / torch.where(distance > 0, distance, 1)
            each = (of_points * residual).unsqueeze(-1) * torch.cat([unit, torch.ones_like(distance)], -1)
            return -each.sum(-2)

        if torch.is_grad_enabled() and (points.requires_grad or weights.requires_grad):
            found = torch.where(valid.unsqueeze(-1), found, torch.nan)  # no solution there, and no gradient
            found = implicit.root(
                slope, found, (points - mean) / size, inside, batch_dims=found.dim() - 1, tolerance=1e-9,
                on_failure="zero",
            ).nan_to_num()  # fmt: skip
        models = torch.cat([found[..., :2] * scale + origin, found[..., 2:] * scale], -1)
        return torch.where(valid.unsqueeze(-1), models, 0).to(dtype), valid

    def _minimised(self, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Circles of normalised points, and which of them exist; no gradient."""
        # |x|^2 = 2 c.x + (r^2 - |c|^2), linear in what is unknown
        ones = torch.ones_like(points[..., :1])
        design, target = torch.cat([2 * points, ones], -1), points.square().sum(-1, keepdim=True)
        weighted = weights.unsqueeze(-1) * design
        value, vectors = torch.linalg.eigh(weighted.mT @ design)
        valid = value[..., 0] > 1e-12 * value[..., 2]
        inverse = vectors @ (vectors.mT / torch.where(valid.unsqueeze(-1), value, 1).unsqueeze(-1))
        linear = (inverse @ (weighted.mT @ target)).squeeze(-1)
        square = linear[..., 2] + linear[..., :2].square().sum(-1)
        valid &= square > 0
        circle = torch.cat([linear[..., :2], torch.where(valid, square, 1).sqrt().unsqueeze(-1)], -1)
        circle = torch.where(valid.unsqueeze(-1), circle, circle.new_tensor([0.0, 0.0, 1.0]))
        value = self._cost(circle, points, weights)
        for _ in range(STEPS):
            away = points - circle[..., None, :2]
            distance = away.norm(dim=-1, keepdim=True)
            jacobian = torch.cat([-away / torch.where(distance > 0, distance, 1), -ones], -1)
            weighted = weights.unsqueeze(-1) * jacobian
            normal = weighted.mT @ jacobian
            normal.diagonal(dim1=-2, dim2=-1).add_(1e-14)  # a circle of points at one place has no unique step
            step, _ = torch.linalg.solve_ex(normal, weighted.mT @ self._signed(circle, points).unsqueeze(-1))
            moved = circle - step.squeeze(-1)
            after = self._cost(moved, points, weights)
            # at the minimum a step changes the sum by rounding errors only, and may still make it more exact
            better = (after <= value * (1 + 1e-12)) & (moved[..., 2] > 0)
            circle, value = torch.where(better.unsqueeze(-1), moved, circle), torch.where(better, after, value)
        return circle, valid

    def _cost(self, circle: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        return (weights * self._signed(circle, points).square()).sum(-1)

    def retract(self, models: Tensor, step: Tensor) -> Tensor:
        """Steps `[..., 3]` of center and radius."""
        return models + step

    def degenerate(self, sample: Tensor) -> Tensor:
        """Three points on a line, or two at one place."""
        return on_a_line(sample)
