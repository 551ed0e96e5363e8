"""Means over the points of a problem, for any number of models of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def aligned(
    function: str, batch: torch.Size, points: Tensor, size: int, inliers: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Points `[*batch, n, d]` and weights `[*batch, n]` with dimensions of size 1 for the hypotheses."""
    if points.dim() < 2 or points.shape[-1] != size:
        raise ValueError(
            f"{function}: argument 'points' must have the shape (..., n, {size}), got {tuple(points.shape)}"
        )
    own = points.dim() - 2
    if own > len(batch) or any(a not in (b, 1) for a, b in zip(points.shape, batch[:own], strict=False)):
        raise ValueError(
            f"{function}: the batch dimensions of 'points', {tuple(points.shape[:-2])}, must be the first ones of "
            f"'models', {tuple(batch)}; the dimensions of hypotheses come after them"
        )
    if inliers is None:
        weights = torch.ones_like(points[..., 0])
    elif isinstance(inliers, Tensor) and inliers.shape == points.shape[:-1]:
        weights = inliers.to(points.dtype)
    else:
        got = tuple(inliers.shape) if isinstance(inliers, Tensor) else type(inliers).__name__
        raise ValueError(
            f"{function}: argument 'inliers' must have the shape of the points, {tuple(points.shape[:-1])}, got {got}"
        )
    # absent points may be NaN; their weight is to be 0, but 0 * NaN would not be
    points = torch.where((weights > 0).unsqueeze(-1), points, 0)
    hypotheses = (1,) * (len(batch) - own)
    return points.view(*points.shape[:own], *hypotheses, *points.shape[own:]), weights.view(
        *weights.shape[:own], *hypotheses, weights.shape[-1]
    )


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Over the last dimension; 0 where all weights are."""
    total = weights.sum(-1)
    return (values * weights).sum(-1) / torch.where(total > 0, total, 1)


def bounded_mean(
    squared: Callable[[Tensor, Tensor], Tensor], models: Tensor, points: Tensor, weights: Tensor, limit: float
) -> Tensor:
    """The weighted mean over the points of min(squared / limit^2, 1), of `aligned` points; what is not a number
    counts 1."""
    with torch.no_grad():
        near = (squared(models, points) < limit * limit) & (weights > 0)
        far = weighted_mean((~near).to(weights.dtype), weights)
    # Again for the pairs that have a gradient, and for no others: of a point that a model maps to infinity, or of a
    # model that is zero because it is not valid, the derivative would be NaN, and 0 * NaN is not 0.
    pairs = near.nonzero(as_tuple=True)
    of_points = points.expand(*near.shape, points.shape[-1])[pairs].unsqueeze(-2)
    ratio = squared(models[pairs[:-1]], of_points).squeeze(-1) / (limit * limit)
    close = torch.zeros_like(far.unsqueeze(-1).expand(near.shape)).index_put(pairs, ratio)
    return far + weighted_mean(close, weights)
