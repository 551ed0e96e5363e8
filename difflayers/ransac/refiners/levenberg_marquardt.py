"""Levenberg-Marquardt on the set of models."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _checks, _ops
from ...errors import UnsupportedOperationError
from ..solver import MinimalSolver
from ._descent import descend
from ._losses import LOSSES
from ._optimum import differentiable_optimum
from .base import Refiner

__all__ = ["LevenbergMarquardt"]

# (problem, kernel) of a solver -> the model's name in the operator refine_models
COMPILED = {
    ("essential", "sampson"): "essential",
    ("fundamental", "sampson"): "fundamental",
    ("homography", "transfer"): "homography",
    ("absolute_pose", "reprojection"): "pose",
    ("pose", "reprojection"): "pose",
    ("rigid", "rigid"): "rigid",
    ("similarity", "rigid"): "similarity",
    ("line", "line"): "line",
    ("plane", "plane"): "plane",
    ("circle", "circle"): "circle",
}


class LevenbergMarquardt(Refiner):
    def __init__(self, loss: str = "truncated", *, steps: int = 25) -> None:
        function = "difflayers.ransac.LevenbergMarquardt"
        self.loss = _checks.choice(function, "loss", loss, tuple(LOSSES))
        self.steps = _checks.integer(function, "steps", steps, minimum=0)

    def refine(
        self, solver: MinimalSolver, models: Tensor, points: Tensor, mask: Tensor | None, threshold: Tensor
    ) -> Tensor:
        """Models `[B, H, *model_shape]` -> those of least robust loss near by."""
        better = self._optimised(solver, models.detach(), points.detach(), mask, threshold.detach())
        if not (torch.is_grad_enabled() and points.requires_grad) or not better.numel() or solver.freedom <= 0:
            return better
        return differentiable_optimum(solver, LOSSES[self.loss], better, points, mask, threshold)

    def _optimised(
        self, solver: MinimalSolver, models: Tensor, points: Tensor, mask: Tensor | None, threshold: Tensor
    ) -> Tensor:
        name = COMPILED.get((solver.problem or "", solver.kernel or ""))
        exact, wide = models.double(), points.double()
        if name is not None and models.device.type == "cpu" and _ops.has_kernel("refine_models", models.device):
            flat, _ = _ops.refine_models(exact.flatten(2), wide, mask, threshold.double(), name, self.loss, self.steps)
            return flat.view_as(exact).to(models.dtype)
        if solver.freedom <= 0:
            raise UnsupportedOperationError(
                f"difflayers.ransac.LevenbergMarquardt: {type(solver).__name__} does not say how a model moves; give "
                f"it freedom and retract(models, step), or use another refiner"
            )
        found, _ = descend(solver, LOSSES[self.loss], exact, wide, mask, threshold.double(), self.steps)
        return found.to(models.dtype)

    def __repr__(self) -> str:
        return f"LevenbergMarquardt({self.loss!r}, steps={self.steps})"
