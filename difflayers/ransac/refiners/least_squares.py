"""Least squares on the inliers, repeated."""

from __future__ import annotations

import torch
from torch import Tensor

from ..solver import MinimalSolver
from .base import Refiner

__all__ = ["LeastSquares"]


class LeastSquares(Refiner):
    """Fits the model to its inliers, a few times over: the non-minimal fit of the model, with weights 0 and 1.

    Args:
        steps: how often.
    """

    def __init__(self, steps: int = 3) -> None:
        self.steps = steps

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
