"""What the essential and the fundamental matrix share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from .. import _checks
from . import residuals
from ._implicit_solve import ImplicitSolver
from ._projections import smallest_eigenvector

__all__ = ["EpipolarSolver", "cofactors", "eight_point", "homogeneous", "null_vector", "restored"]


def homogeneous(points: Tensor) -> Tensor:
    """`[..., 2]` -> `[..., 3]` with a last coordinate of 1."""
    return torch.cat([points, torch.ones_like(points[..., :1])], -1)


def cofactors(matrix: Tensor) -> Tensor:
    """The derivative of the determinant of `[..., 3, 3]`."""
    a, b, c = matrix.unbind(-2)
    return torch.stack([b.cross(c, -1), c.cross(a, -1), a.cross(b, -1)], -2)


def null_vector(of: Tensor) -> Tensor:
    """The unit t with t^T F = 0 of matrices of rank 2, from their cofactors, a multiple of t r^T; 0 at rank 1."""
    length2 = of.square().sum(-2)
    best = length2.detach().argmax(-1, keepdim=True)
    chosen = of.gather(-1, best.unsqueeze(-2).expand(*of.shape[:-1], 1)).squeeze(-1)
    square = length2.gather(-1, best)
    return torch.where(square == 0, 0, chosen / torch.where(square == 0, 1.0, square).sqrt())


def restored(matrix: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """T2^T F T1 of unit norm."""
    raw = second.mT @ matrix @ first
    length2 = raw.square().sum((-2, -1), keepdim=True)
    return raw / torch.where(length2 > 0, length2, 1.0).sqrt()


def eight_point(points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weighted 8-point algorithm, without enforcing a rank.

    Points `[..., n, 4]`, weights `[..., n]` -> unit matrices `[..., 3, 3]` that minimise the weighted algebraic error
    of points normalised by T1 and T2, these two, and whether there is one. With W the weights and q the products of
    two homogeneous coordinates, the moments W (q2 q1^T) `[..., 36]` are all that is needed: memory O(n), not O(n)
    times the number of fits to the same points.
    """
    rough_first, rough_second = _rough(points[..., :2]), _rough(points[..., 2:])
    first, second = homogeneous(points[..., :2]) @ rough_first.mT, homogeneous(points[..., 2:]) @ rough_second.mT
    products = (_products(second).unsqueeze(-1) * _products(first).unsqueeze(-2)).flatten(-2)
    moments = (weights.unsqueeze(-2) @ products).squeeze(-2) if weights.dim() < 2 else _weighted(weights, products)
    moments = moments[..., _UNFOLD.to(points.device)]
    moments = moments.unflatten(-1, (3, 3, 3, 3))  # second, second, first, first
    total = moments[..., 2, 2, 2, 2]
    total = torch.where(total > 0, total, 1.0)[..., None, None]
    fine_first, fine_second = _fine(moments[..., 2, 2, :, :] / total), _fine(moments[..., :, :, 2, 2] / total)
    design = moments.transpose(-3, -2).flatten(-2).flatten(-3, -2) / total  # rows and columns in the order of F
    both = (fine_second[..., :, None, :, None] * fine_first[..., None, :, None, :]).flatten(-2).flatten(-3, -2)
    vector, unique = smallest_eigenvector(both @ design @ both.mT)
    enough = (weights > 0).sum(-1) >= 8
    return vector.unflatten(-1, (3, 3)), fine_first @ rough_first, fine_second @ rough_second, unique & enough


_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
_AT = {pair: k for k, pair in enumerate(_PAIRS)} | {(j, i): k for k, (i, j) in enumerate(_PAIRS)}
_UNFOLD = torch.tensor(
    [6 * _AT[i, k] + _AT[j, m] for i in range(3) for k in range(3) for j in range(3) for m in range(3)]
)


def _products(x: Tensor) -> Tensor:
    return torch.stack([x[..., i] * x[..., j] for i, j in _PAIRS], -1)


def _weighted(weights: Tensor, products: Tensor) -> Tensor:
    """Sums over the points; fits to the same points share one matrix product."""
    if products.dim() >= 3 and products.shape[-3] == 1:
        return weights @ products.squeeze(-3)
    return (weights.unsqueeze(-2) @ products).squeeze(-2)


def _affine(mean: Tensor, scale: Tensor) -> Tensor:
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    rows = [scale, zero, -scale * mean[..., 0], zero, scale, -scale * mean[..., 1], zero, zero, one]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def _rough(points: Tensor) -> Tensor:
    """Moves all points near the unit circle, so that their moments keep their digits; the result does not depend
    on it."""
    points = points.detach()
    mean = points.mean(-2)
    square = (points - mean.unsqueeze(-2)).square().mean((-2, -1))
    return _affine(mean, torch.where(square > 0, square, 1.0).rsqrt())


def _fine(moments: Tensor) -> Tensor:
    """The normalisation of the weighted points from their moments `[..., 3, 3]`: mean 0, mean square coordinate 1."""
    mean = moments[..., :2, 2]
    square = (moments[..., 0, 0] + moments[..., 1, 1] - mean.square().sum(-1)) / 2
    return _affine(mean, torch.where(square > 0, square, 1.0).rsqrt())


class EpipolarSolver(ImplicitSolver):
    """Models with x2^T F x1 = 0 for point pairs `(x1, y1, x2, y2)`."""

    point_size, model_shape = 4, (3, 3)

    def __init__(self, residual: str = "sampson") -> None:
        function = f"difflayers.ransac.{type(self).__name__}"
        self.kernel = _checks.choice(function, "residual", residual, ("sampson", "symmetric_epipolar"))

    def residual(self, models: Tensor, points: Tensor) -> Tensor:
        """Distances `[..., n]` of pairs `[..., n, 4]` from models `[..., 3, 3]`."""
        return getattr(residuals, str(self.kernel))(models, points)

    def squared_residual(self, models: Tensor, points: Tensor) -> Tensor:
        """The squares of the distances."""
        return residuals.squared(str(self.kernel), models, points)

    def residual_vector(self, models: Tensor, points: Tensor) -> Tensor:
        """The distance with the sign of x2^T F x1, `[..., n, 1]`, or the distances in the two images, `[..., n, 2]`."""
        error, second, first = residuals.epipolar_parts(models, points)
        parts = (second + first,) if self.kernel == "sampson" else (second, first)
        defined = [part > 0 for part in parts]
        roots = [torch.where(good, part, 1.0).sqrt() for good, part in zip(defined, parts, strict=True)]
        return torch.stack(
            [torch.where(good, error / root, torch.inf) for good, root in zip(defined, roots, strict=True)], -1
        )

    def equations(self, models: Tensor, sample: Tensor) -> Tensor:
        """`[V, k]`: x2^T F x1 of each pair."""
        return (homogeneous(sample[..., 2:]) * (homogeneous(sample[..., :2]) @ models.mT)).sum(-1)

    def coincident(self, sample: Tensor) -> Tensor:
        """Whether two pairs of samples `[..., k, 4]` share a point in either image, `[...]`."""
        i, j = torch.tensor(list(combinations(range(self.sample_size), 2)), device=sample.device).unbind(-1)
        same = sample[..., i, :] == sample[..., j, :]
        return (same.unflatten(-1, (2, 2)).all(-1)).any(-1).any(-1)

    def all_but_one_on_a_line(self, sample: Tensor) -> Tensor:
        """Of samples `[..., k, 4]`, `[..., 2, k]`: in each image, whether all points but this one are on a line."""
        images = sample.double().unflatten(-1, (2, 2)).transpose(-3, -2)  # [..., 2, k, 2]
        x, y = (images - images.mean(-2, keepdim=True)).unbind(-1)
        features = torch.stack([x, y, x * x, x * y, y * y], -2)
        others = (features.sum(-1, keepdim=True) - features) / (self.sample_size - 1)
        sx, sy, xx, xy, yy = others.unbind(-2)
        xx, xy, yy = xx - sx * sx, xy - sx * sy, yy - sy * sy
        # of thickness below 1e-5 of the length: what float32 coordinates of a thousand pixels can tell
        return xx * yy - xy * xy <= 1e-10 * (xx + yy).square()

    def orientation(self, models: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Two numbers for each pair of the samples, `[..., k]`.

        With E = s [t]_x R, l = E x1 and l2 x2 = l1 R x1 + t, the depths satisfy: l1 l2 has the sign of
        side = det(t, x2, l), and l2 that of s |l|^2 (x2.t) - (t^T cof(E) x1) side. The sign of t is free; with the
        one that makes side positive, a pose has all pairs in front of both cameras, or behind both, where the second
        number has the same sign for all. The first needs no calibration. Entry by entry: batches of small matrix
        products cost several times as much.
        """
        x, y, u, v = sample.unbind(-1)
        f = models.flatten(-2).unsqueeze(-2).unbind(-1)
        rows = (f[0:3], f[3:6], f[6:9])
        crossed = [_cross(rows[(i + 1) % 3], rows[(i + 2) % 3]) for i in range(3)]  # cof(E), a multiple of t r^T
        columns = list(zip(*crossed, strict=True))
        t, best = columns[0], _dot(columns[0], columns[0])
        for column in columns[1:]:
            square = _dot(column, column)
            t = tuple(torch.where(square > best, new, old) for new, old in zip(column, t, strict=True))
            best = torch.maximum(best, square)
        line = tuple(row[0] * x + row[1] * y + row[2] for row in rows)
        normal = _cross(t, line)  # det(t, x2, l) = -x2.(t x l)
        side = -(u * normal[0] + v * normal[1] + normal[2])
        along = tuple(_dot(t, column) for column in columns)
        size = (_dot(f, f) / 2 * best).sqrt()  # s |t|, as t is not of unit length here
        towards = size * _dot(line, line) * (u * t[0] + v * t[1] + t[2])
        depth = side.sign() * towards - (along[0] * x + along[1] * y + along[2]) * side
        return side, depth

    def __repr__(self) -> str:
        return f"{type(self).__name__}(residual={self.kernel!r})"


def agree(values: Tensor) -> Tensor:
    """Whether all have the same sign along the last dimension; 0 agrees with both."""
    return (values >= 0).all(-1) | (values <= 0).all(-1)


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return sum((p * q for p, q in zip(a[1:], b[1:], strict=True)), a[0] * b[0])


def _cross(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]
