"""Squared residuals in plain PyTorch: the reference of the fused kernels, and what the ready models are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["NAMES", "squared"]


class _Residual(NamedTuple):
    """A formula of the model's numbers and the point's coordinates, and a model of which it makes sense."""

    of: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
    harmless: tuple[float, ...]


def squared(name: str, models: Tensor, points: Tensor) -> Tensor:
    """Squared residuals of models `[..., *model_shape]` on points `[..., n, d]`, `[..., n]`.

    Infinite, with zero gradient, where the residual is not defined or overflows: a point that a homography maps to
    infinity, one behind the camera, a model that is zero. Never NaN.

    Args:
        name: "sampson", "symmetric_epipolar" (the sum of both squared distances), "transfer", "symmetric_transfer"
            (of both images, summed), "line", "plane", "circle", "rigid", "reprojection".
        models: of `[3, 3]`, `(a, b, c)`, `(a, b, c, d)`, `(x, y, radius)`, `[3, 4]` and `[3, 4]`.
        points: `(x1, y1, x2, y2)`, `(x, y)`, `(x, y, z)`, `(x, y)`, `(source, target)` and `(u, v, X, Y, Z)`.
    """
    residual = _RESIDUALS[name]
    size, dimensions = len(residual.harmless), points.shape[-1]
    shape = models.shape[: models.dim() - (1 if models.shape[-1] == size else 2)]
    model = models.reshape(*shape, 1, size).unbind(-1)
    point = points.unbind(-1)
    result = residual.of(model, point)
    undefined = ~(result.detach() < torch.inf)
    if bool(undefined.any()):
        # again with something harmless there: a NaN or an infinity would otherwise reach the gradient as 0 * inf
        model = [torch.where(undefined, value, m) for value, m in zip(residual.harmless, model, strict=True)]
        point = [torch.where(undefined, 1.0, point[i]) for i in range(dimensions)]
        result = torch.where(undefined, torch.inf, residual.of(model, point))
    return result


def _epipolar(f: Sequence[Tensor], p: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The squared algebraic error, and the squared lengths of the normals of the lines in the second and the first
    image."""
    x, y, u, v = p
    l0, l1 = f[0] * x + f[1] * y + f[2], f[3] * x + f[4] * y + f[5]
    m0, m1 = f[0] * u + f[3] * v + f[6], f[1] * u + f[4] * v + f[7]
    error = u * l0 + v * l1 + (f[6] * x + f[7] * y + f[8])
    return error.square(), l0.square() + l1.square(), m0.square() + m1.square()


def _sampson(f: Sequence[Tensor], p: Sequence[Tensor]) -> Tensor:
    error, second, first = _epipolar(f, p)
    return error / (second + first)


def _symmetric_epipolar(f: Sequence[Tensor], p: Sequence[Tensor]) -> Tensor:
    error, second, first = _epipolar(f, p)
    return error / second + error / first


def _transfer(h: Sequence[Tensor], p: Sequence[Tensor]) -> Tensor:
    x, y, u, v = p
    w = h[6] * x + h[7] * y + h[8]
    return ((h[0] * x + h[1] * y + h[2]) / w - u).square() + ((h[3] * x + h[4] * y + h[5]) / w - v).square()


def _symmetric_transfer(h: Sequence[Tensor], p: Sequence[Tensor]) -> Tensor:
    # the way back is the adjugate, the inverse up to scale
    back = [
        h[4] * h[8] - h[5] * h[7], h[2] * h[7] - h[1] * h[8], h[1] * h[5] - h[2] * h[4],
        h[5] * h[6] - h[3] * h[8], h[0] * h[8] - h[2] * h[6], h[2] * h[3] - h[0] * h[5],
        h[3] * h[7] - h[4] * h[6], h[1] * h[6] - h[0] * h[7], h[0] * h[4] - h[1] * h[3],
    ]  # fmt: skip
    return _transfer(h, p) + _transfer(back, (*p[2:], *p[:2]))


def _hyperplane(m: Sequence[Tensor], p: Sequence[Tensor]) -> Tensor:
    distance = m[-1]
    for normal, x in zip(m, p, strict=False):
        distance = distance + normal * x
    return distance.square()


def _circle(m: Sequence[Tensor], p: Sequence[Tensor]) -> Tensor:
    square = (p[0] - m[0]).square() + (p[1] - m[1]).square()
    away = square > 0  # at the centre the distance has no derivative
    return (torch.where(away, torch.where(away, square, 1.0).sqrt(), 0.0) - m[2]).square()


def _row(m: Sequence[Tensor], i: int, p: Sequence[Tensor]) -> Tensor:
    return m[4 * i] * p[0] + m[4 * i + 1] * p[1] + m[4 * i + 2] * p[2] + m[4 * i + 3]


def _rigid(m: Sequence[Tensor], p: Sequence[Tensor]) -> Tensor:
    x, y, z = ((_row(m, i, p[:3]) - p[3 + i]).square() for i in range(3))
    return x + y + z


def _reprojection(m: Sequence[Tensor], p: Sequence[Tensor]) -> Tensor:
    x, y, depth = (_row(m, i, p[2:]) for i in range(3))
    error = (x / depth - p[0]).square() + (y / depth - p[1]).square()
    return torch.where(depth > 0, error, torch.inf)


_IDENTITY, _CAMERA = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0), (1.0, *(0.0,) * 4, 1.0, *(0.0,) * 4, 1.0, 0.0)
_RESIDUALS = {
    "sampson": _Residual(_sampson, _IDENTITY),
    "symmetric_epipolar": _Residual(_symmetric_epipolar, _IDENTITY),
    "transfer": _Residual(_transfer, _IDENTITY),
    "symmetric_transfer": _Residual(_symmetric_transfer, _IDENTITY),
    "line": _Residual(_hyperplane, (1.0, 0.0, 0.0)),
    "plane": _Residual(_hyperplane, (1.0, 0.0, 0.0, 0.0)),
    "circle": _Residual(_circle, (0.0, 0.0, 1.0)),
    "rigid": _Residual(_rigid, _CAMERA),
    "reprojection": _Residual(_reprojection, _CAMERA),
}
NAMES = tuple(_RESIDUALS)
