"""A homography between two images of a plane."""

from __future__ import annotations

import torch
from torch import Tensor

from . import manifolds, residuals
from ._implicit_solve import ImplicitSolver

__all__ = ["Homography"]


class Homography(ImplicitSolver):
    r"""$x_2 \sim H x_1$ for point pairs `(x1, y1, x2, y2)`; minimal sample 4.

    The model is `[3, 3]` of unit Frobenius norm, its sign free. The residual is the transfer error, the distance of
    $x_2$ from $H x_1$ in the second image. `fit` is the weighted direct linear transform of normalised points. A sample
    is degenerate when three of its points are on a line in either image; a model is plausible when no point of the
    sample crosses its line at infinity.

    Cost, transforms:
        O(1) a sample, in C++ on the CPU (float64 inside); backward only, by the implicit function theorem.

    References:
        Hartley, Zisserman, "Multiple View Geometry in Computer Vision", 2003, section 4.1 and algorithm 4.2.

    Example:
        >>> import torch, difflayers as dl
        >>> corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> sample = torch.cat([corners, 2 * corners + 1], -1)
        >>> models, valid, _ = dl.ransac.Homography().solve(sample)
        >>> (models[valid][0] / models[valid][0, 2, 2]).round(decimals=4) + 0.0
        tensor([[2., 0., 1.],
                [0., 2., 1.],
                [0., 0., 1.]])
    """

    sample_size, point_size, model_shape = 4, 4, (3, 3)
    problem = "homography"
    kernel = "transfer"
    freedom = 8

    def residual(self, models: Tensor, points: Tensor) -> Tensor:
        """Transfer errors `[..., n]`; infinite for points that the model maps to infinity."""
        return residuals.transfer(models, points)

    def squared_residual(self, models: Tensor, points: Tensor) -> Tensor:
        """Squared transfer errors."""
        return residuals.squared("transfer", models, points)

    def residual_vector(self, models: Tensor, points: Tensor) -> Tensor:
        """$H x_1 - x_2$, `[..., n, 2]`."""
        ones = torch.ones_like(points[..., :1])
        mapped = torch.cat([points[..., :2], ones], -1) @ models.mT
        return mapped[..., :2] / mapped[..., 2:] - points[..., 2:]

    def retract(self, models: Tensor, step: Tensor) -> Tensor:
        """Steps `[..., 8]` across the model."""
        return manifolds.retract_homogeneous(models, step)

    def equations(self, models: Tensor, sample: Tensor) -> Tensor:
        """`[V, 8]`: h1 x - u h3 x and h2 x - v h3 x of each pair."""
        ones = torch.ones_like(sample[..., :1])
        a, b, c = (torch.cat([sample[..., :2], ones], -1) @ models.mT).unbind(-1)
        return torch.cat([a - sample[..., 2] * c, b - sample[..., 3] * c], -1)

    def tangent(self, models: Tensor, sample: Tensor) -> Tensor:
        """`[V, 8, 3, 3]`: directions across the model, orthonormal for normalised points."""
        _, mean, spread = _normalised(sample, torch.full_like(sample[..., :1], 0.25))
        first, second = (mean[..., :2], spread[..., 0]), (mean[..., 2:], spread[..., 2])
        normal = _transform(*second) @ models @ _transform(*first, inverse=True)
        length = normal.flatten(1).norm(dim=-1)
        directions = torch.linalg.svd((normal / length[:, None, None]).flatten(1).unsqueeze(1), full_matrices=True)
        moved = _transform(*second, inverse=True).unsqueeze(1) @ directions.Vh[:, 1:].unflatten(-1, (3, 3))
        moved = (moved @ _transform(*first).unsqueeze(1)).flatten(2) * length[:, None, None]
        unit = models.flatten(1).unsqueeze(-1)
        return (moved - (moved @ unit) * unit.mT).unflatten(-1, (3, 3))

    def degenerate(self, sample: Tensor) -> Tensor:
        """Three of the four points on a line in either image."""
        triples = sample[..., [[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]], :].unflatten(-1, (2, 2))
        first, second, third = triples.unbind(-3)  # shape: [..., 4, image, 2]
        a, b = second - first, third - first
        area = (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).abs()
        return ~(area > 1e-3 * a.norm(dim=-1) * b.norm(dim=-1)).flatten(-2).all(-1)

    def plausible(self, models: Tensor, sample: Tensor) -> Tensor:
        """No point of the sample crosses the line that goes to infinity: a camera sees one side of a plane."""
        homogeneous = (sample[..., :2] * models[..., None, 2, :2]).sum(-1) + models[..., 2, 2:]
        return (homogeneous > 0).all(-1) | (homogeneous < 0).all(-1)

    def fit(self, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted direct linear transform of normalised points, `[..., n, 4]`, `[..., n]` -> `[..., 3, 3]`; at
        least 4 points of positive weight. No gradient: refiners differentiate at the optimum."""
        with torch.no_grad():
            dtype = points.dtype
            points, weights = points.double(), weights.double()
            total = weights.sum(-1, keepdim=True)
            share = (weights / torch.where(total > 0, total, 1.0)).unsqueeze(-1)
            moved, mean, spread = _normalised(points, share)
            design = _direct_linear_transform(moved) * weights.sqrt().repeat(*([1] * (weights.dim() - 1)), 2).unsqueeze(
                -1
            )
            values, vectors = torch.linalg.eigh(design.mT @ design)
            h = vectors[..., 0].unflatten(-1, (3, 3))
            valid = ((weights > 0).sum(-1) >= 4) & (values[..., 1] > 1e-14 * values[..., 8])
            h = _unnormalised(h, mean, spread)
            length = h.flatten(-2).norm(dim=-1)[..., None, None]
            return (h / torch.where(length > 0, length, 1.0)).to(dtype), valid & (length[..., 0, 0] > 0)

    def reference(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """The null vector of the direct linear transform."""
        moved, mean, spread = _normalised(sample, torch.full_like(sample[..., :1], 0.25))
        _, singular, right = torch.linalg.svd(_direct_linear_transform(moved), full_matrices=True)
        h = _unnormalised(right[:, 8].unflatten(-1, (3, 3)), mean, spread)
        length = h.flatten(1).norm(dim=-1)[:, None, None]
        counts = (singular[:, 7] > 1e-12 * singular[:, 0]).long()
        return (h / torch.where(length > 0, length, 1.0)).unsqueeze(1), counts


def _normalised(points: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points moved to the mean 0 and the mean square 1 in each image, what was subtracted, and the divisor; the shares
    `[..., n, 1]` sum to 1."""
    mean = (share * points).sum(-2, keepdim=True)
    spread = (share * (points - mean).square()).sum(-2, keepdim=True).unflatten(-1, (2, 2)).mean(-1).sqrt()
    spread = torch.where(spread > 0, spread, 1.0).repeat_interleave(2, -1)
    return (points - mean) / spread, mean.squeeze(-2), spread.squeeze(-2)


def _unnormalised(h: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """The homography of the given points, from that of the normalised ones."""
    h = _transform(mean[..., 2:], spread[..., 2], inverse=True) @ h
    return h @ _transform(mean[..., :2], spread[..., 0])


def _direct_linear_transform(points: Tensor) -> Tensor:
    """Two rows a point, linear in the model's entries: `[..., n, 4]` -> `[..., 2 n, 9]`."""
    x, y, u, v = points.unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    first = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y, -u], -1)
    second = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y, -v], -1)
    return torch.cat([first, second], -2)


def _transform(mean: Tensor, spread: Tensor, *, inverse: bool = False) -> Tensor:
    """The matrix of x -> (x - mean) / spread, or of its inverse: `[..., 2]`, `[...]` -> `[..., 3, 3]`."""
    matrix = torch.zeros((*spread.shape, 3, 3), dtype=mean.dtype, device=mean.device)
    matrix[..., 0, 0] = matrix[..., 1, 1] = spread if inverse else 1 / spread
    matrix[..., :2, 2] = mean if inverse else -mean / spread.unsqueeze(-1)
    matrix[..., 2, 2] = 1
    return matrix
