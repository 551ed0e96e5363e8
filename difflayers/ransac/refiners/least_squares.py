"""Least squares on the inliers, repeated."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _checks
from ..solver import MinimalSolver
from .base import Refiner

__all__ = ["LeastSquares"]


class LeastSquares(Refiner):
    """Fits the model to its inliers, a few times over: the non-minimal fit of the model, with weights 0 and 1.

    The gradient by the points is that of the last fit, the inliers being what they are. Works for every model that has
    `fit`; where models have `retract`, too, `LevenbergMarquardt` is more exact.

    Args:
        steps: how often.

    Raises:
        TypeError, ValueError: steps is not an integer, or negative.
        UnsupportedOperationError: of `refine`, for a model without `fit`.

    Cost, transforms:
        A residual and a fit for every model and step; backward.

    Example:
        >>> import torch, difflayers as dl
        >>> points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 9.0]])
        >>> start = torch.tensor([[[0.7, -0.7, 0.1]]])
        >>> refiner = dl.ransac.LeastSquares()
        >>> line = refiner.refine(dl.ransac.Line2D(), start, points[None], None, torch.tensor([0.5]))
        >>> (line / line[..., :1]).round(decimals=4) + 0.0
        tensor([[[ 1., -1.,  0.]]])
    """

    def __init__(self, steps: int = 3) -> None:
        self.steps = _checks.integer("difflayers.ransac.LeastSquares", "steps", steps, minimum=0)

    def refine(
        self, solver: MinimalSolver, models: Tensor, points: Tensor, mask: Tensor | None, threshold: Tensor
    ) -> Tensor:
        """Models `[B, H, *model_shape]` -> fits to their inliers."""
        every = points.unsqueeze(1)
        for _ in range(self.steps):
            with torch.no_grad():
                inliers = solver.residual(models, every) < threshold[:, None, None]
                if mask is not None:
                    inliers &= mask.unsqueeze(1)
            fitted, valid = solver.fit(every, inliers.to(points.dtype))
            models = torch.where(valid[(..., *(None,) * len(solver.model_shape))], fitted, models)
        return models
