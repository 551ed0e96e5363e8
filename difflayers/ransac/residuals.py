"""How far points are from models: distances in the units of the points.

Models `[..., *shape]`, points `[..., n, d]`, leading dimensions broadcast, result `[..., n]`. All are plain PyTorch:
differentiable by models and points, O(n) a model, and every transform of PyTorch is supported. Where a model says
nothing about a point (it maps it to infinity, its epipolar line vanishes, it lies behind the camera) the distance is
infinite. At distance 0, where a root has no derivative, the gradient is 0; `squared` has none of these corners and is
what scores and refinements use.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import _checks

__all__ = [
    "circle", "line", "plane", "reprojection", "rigid", "sampson", "squared", "symmetric_epipolar",
    "symmetric_transfer", "transfer",
]  # fmt: skip


def sampson(models: Tensor, points: Tensor) -> Tensor:
    r"""The Sampson distance of point pairs from an epipolar geometry.

    $|x_2^\top F x_1| / \sqrt{(F x_1)_1^2 + (F x_1)_2^2 + (F^\top x_2)_1^2 + (F^\top x_2)_2^2}$, to first order the
    distance of the pair, as a point of four dimensions, from the nearest pair that F allows.

    Args:
        models: fundamental or essential matrices `[..., 3, 3]`.
        points: `[..., n, 4]`, rows (x1, y1, x2, y2).

    Returns:
        `[..., n]`.

    References:
        Hartley, Zisserman, "Multiple View Geometry in Computer Vision", 2003, equation 11.9.

    Example:
        >>> import torch, difflayers as dl
        >>> sideways = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])  # rows stay rows
        >>> dl.ransac.residuals.sampson(sideways, torch.tensor([[1.0, 2.0, 5.0, 2.0], [1.0, 2.0, 5.0, 4.0]]))
        tensor([0.0000, 1.4142])
    """
    return _root(_sampson2(models, points))


def symmetric_epipolar(models: Tensor, points: Tensor) -> Tensor:
    r"""The distances of both points of a pair from their epipolar lines, as one.

    $\sqrt{d_1^2 + d_2^2}$: the root of the sum, not of the mean, of the squared distances in the two images. It is at
    least twice the Sampson distance.

    Args:
        models: fundamental or essential matrices `[..., 3, 3]`.
        points: `[..., n, 4]`, rows (x1, y1, x2, y2).

    Returns:
        `[..., n]`.

    Example:
        >>> import torch, difflayers as dl
        >>> sideways = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
        >>> dl.ransac.residuals.symmetric_epipolar(sideways, torch.tensor([[1.0, 2.0, 5.0, 4.0]]))
        tensor([2.8284])
    """
    return _root(_symmetric_epipolar2(models, points))


def transfer(models: Tensor, points: Tensor) -> Tensor:
    """The distance of x2 from H x1, in the second image.

    Args:
        models: homographies `[..., 3, 3]`.
        points: `[..., n, 4]`, rows (x1, y1, x2, y2).

    Returns:
        `[..., n]`.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.ransac.residuals.transfer(torch.eye(3), torch.tensor([[1.0, 2.0, 4.0, 6.0]]))
        tensor([5.])
    """
    return _root(_transfer2(models, points))


def symmetric_transfer(models: Tensor, points: Tensor) -> Tensor:
    r"""The transfer errors in both images, as one: $\sqrt{|x_2 - H x_1|^2 + |x_1 - H^{-1} x_2|^2}$.

    Args:
        models: homographies `[..., 3, 3]`.
        points: `[..., n, 4]`, rows (x1, y1, x2, y2).

    Returns:
        `[..., n]`; infinite for a singular H.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.ransac.residuals.symmetric_transfer(torch.eye(3), torch.tensor([[1.0, 2.0, 4.0, 6.0]]))
        tensor([7.0711])
    """
    return _root(_symmetric_transfer2(models, points))


def line(models: Tensor, points: Tensor) -> Tensor:
    """The distance of points from a line in the plane.

    Args:
        models: lines (a, b, c) with a^2 + b^2 = 1, `[..., 3]`.
        points: `[..., n, 2]`.

    Returns:
        `[..., n]`.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.ransac.residuals.line(torch.tensor([0.0, 1.0, -2.0]), torch.tensor([[7.0, 5.0]]))
        tensor([3.])
    """
    return _hyperplane(models, points).abs()


def plane(models: Tensor, points: Tensor) -> Tensor:
    """The distance of points from a plane in space.

    Args:
        models: planes (a, b, c, d) with a^2 + b^2 + c^2 = 1, `[..., 4]`.
        points: `[..., n, 3]`.

    Returns:
        `[..., n]`.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.ransac.residuals.plane(torch.tensor([0.0, 0.0, 1.0, -2.0]), torch.tensor([[7.0, 5.0, 1.0]]))
        tensor([1.])
    """
    return _hyperplane(models, points).abs()


def circle(models: Tensor, points: Tensor) -> Tensor:
    """The distance of points from a circle.

    Args:
        models: circles (centre x, centre y, radius), `[..., 3]`.
        points: `[..., n, 2]`.

    Returns:
        `[..., n]`.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.ransac.residuals.circle(torch.tensor([0.0, 0.0, 2.0]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([3., 1.])
    """
    return _circle(models, points).abs()


def rigid(models: Tensor, points: Tensor) -> Tensor:
    """The distance of X2 from R X1 + t.

    Args:
        models: `[..., 3, 4]`, [R | t]; R may carry a scale.
        points: `[..., n, 6]`, rows (X1, X2).

    Returns:
        `[..., n]`.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.ransac.residuals.rigid(torch.eye(3, 4), torch.tensor([[1.0, 2.0, 3.0, 1.0, 2.0, 5.0]]))
        tensor([2.])
    """
    return _root(_rigid2(models, points))


def reprojection(models: Tensor, points: Tensor) -> Tensor:
    """The distance of an image point from the projection of its point in space.

    Args:
        models: `[..., 3, 4]`, [R | t], for image points in normalised coordinates.
        points: `[..., n, 5]`, rows (u, v, X, Y, Z).

    Returns:
        `[..., n]`; infinite behind the camera.

    Example:
        >>> import torch, difflayers as dl
        >>> points = torch.tensor([[0.5, 2.0, 1.0, 2.0, 2.0], [0.5, 1.0, 1.0, 2.0, -2.0]])
        >>> dl.ransac.residuals.reprojection(torch.eye(3, 4), points)
        tensor([1., inf])
    """
    return _root(_reprojection2(models, points))


def squared(name: str, models: Tensor, points: Tensor) -> Tensor:
    """The square of the residual of this name, differentiable where the residual itself is 0.

    Args:
        name: of the function: "sampson", "symmetric_epipolar", "transfer", "symmetric_transfer", "line",
            "plane", "circle", "rigid" or "reprojection".
        models: as that function takes them.
        points: as that function takes them.

    Returns:
        `[..., n]`.

    Raises:
        ValueError: there is no residual of this name.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.ransac.residuals.squared("transfer", torch.eye(3), torch.tensor([[1.0, 2.0, 4.0, 6.0]]))
        tensor([25.])
    """
    return _SQUARED[_checks.choice("difflayers.ransac.residuals.squared", "name", name, tuple(_SQUARED))](
        models, points
    )


def _root(square: Tensor) -> Tensor:
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def _over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, infinite where the denominator is 0, without NaN in the gradient."""
    defined = denominator != 0
    return torch.where(defined, numerator / torch.where(defined, denominator, 1.0), torch.inf)


def _entries(models: Tensor, dims: int) -> tuple[Tensor, ...]:
    """The entries of models, each `[..., 1]` to broadcast with points."""
    return models.flatten(-dims).unsqueeze(-2).unbind(-1)


def epipolar_parts(models: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The algebraic error, and the squared lengths of the epipolar lines' normals in the second and first image."""
    x, y, u, v = points.unbind(-1)
    f = _entries(models, 2)
    l0, l1 = f[0] * x + f[1] * y + f[2], f[3] * x + f[4] * y + f[5]
    m0, m1 = f[0] * u + f[3] * v + f[6], f[1] * u + f[4] * v + f[7]
    error = u * l0 + v * l1 + f[6] * x + f[7] * y + f[8]
    return error, l0.square() + l1.square(), m0.square() + m1.square()


def _sampson2(models: Tensor, points: Tensor) -> Tensor:
    error, second, first = epipolar_parts(models, points)
    return _over(error.square(), second + first)


def _symmetric_epipolar2(models: Tensor, points: Tensor) -> Tensor:
    error, second, first = epipolar_parts(models, points)
    square = error.square()
    return _over(square, second) + _over(square, first)


def _projected2(h: tuple[Tensor, ...], x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
    w = h[6] * x + h[7] * y + h[8]
    defined = w != 0
    safe = torch.where(defined, w, 1.0)
    dx = (h[0] * x + h[1] * y + h[2]) / safe - u
    dy = (h[3] * x + h[4] * y + h[5]) / safe - v
    return torch.where(defined, dx.square() + dy.square(), torch.inf)


def _transfer2(models: Tensor, points: Tensor) -> Tensor:
    return _projected2(_entries(models, 2), *points.unbind(-1))


def _symmetric_transfer2(models: Tensor, points: Tensor) -> Tensor:
    x, y, u, v = points.unbind(-1)
    first, second, third = models.unbind(-1)
    # the adjugate is the inverse up to scale, and defined for singular H
    adjugate = torch.stack([second.cross(third, -1), third.cross(first, -1), first.cross(second, -1)], -2)
    return _projected2(_entries(models, 2), x, y, u, v) + _projected2(_entries(adjugate, 2), u, v, x, y)


def _hyperplane(models: Tensor, points: Tensor) -> Tensor:
    return (points * models[..., None, :-1]).sum(-1) + models[..., -1:]


def _circle(models: Tensor, points: Tensor) -> Tensor:
    return _root((points - models[..., None, :2]).square().sum(-1)) - models[..., 2:]


def _rigid2(models: Tensor, points: Tensor) -> Tensor:
    moved = points[..., :3] @ models[..., :3].mT + models[..., None, :, 3]
    return (moved - points[..., 3:]).square().sum(-1)


def _reprojection2(models: Tensor, points: Tensor) -> Tensor:
    x, y, depth = (points[..., 2:] @ models[..., :3].mT + models[..., None, :, 3]).unbind(-1)
    in_front = depth > 0
    safe = torch.where(in_front, depth, 1.0)
    square = (x / safe - points[..., 0]).square() + (y / safe - points[..., 1]).square()
    return torch.where(in_front, square, torch.inf)


# by the names of the fused kernels, `MinimalSolver.kernel`
_SQUARED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sampson": _sampson2,
    "symmetric_epipolar": _symmetric_epipolar2,
    "transfer": _transfer2,
    "symmetric_transfer": _symmetric_transfer2,
    "line": lambda models, points: _hyperplane(models, points).square(),
    "plane": lambda models, points: _hyperplane(models, points).square(),
    "circle": lambda models, points: _circle(models, points).square(),
    "rigid": _rigid2,
    "reprojection": _reprojection2,
}
