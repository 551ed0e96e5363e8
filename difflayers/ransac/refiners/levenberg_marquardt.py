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
    r"""Minimises a robust loss of the residuals by steps that stay on the set of models.

    $$m^\star = \arg\min_m \sum_i \rho(r_i(m)^2 / \text{threshold}^2)$$

    near the given model, with the truncated loss $\rho(u) = \min(u, 1)$, "cauchy" $\log(1 + 4u) / 4$, or
    "gaussian_uniform" $\propto -\log(e^{-u / 2\sigma^2} + c)$, $\sigma = 0.273$, $c = 0.82$, moved and scaled to
    [0, 1]: MAGSAC++'s loss within 0.4 %. Essential matrices keep their singular values, fundamental ones their rank,
    rotations stay rotations (`MinimalSolver.retract`).

    The gradient by the points is that of the minimum, by the implicit function theorem with the exact Hessian
    (`difflayers.implicit.root`), whatever the steps that led there; points beyond the truncation have none. A model
    that has not converged, or whose Hessian is singular (condition 1e10), comes back with the gradient zero.

    Args:
        loss: "truncated", "cauchy" or "gaussian_uniform".
        steps: the most steps; a search ends when the loss no longer falls.

    Returns:
        Of `refine`: models of the shape of those given, the loss of each not above what it was.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of its range.
        UnsupportedOperationError: of `refine`, for a model without `retract`.

    Cost:
        A step takes O(f^2) time a point for f degrees of freedom. The models that come with the library are refined in
        C++ on the CPU, on the points within three thresholds (for "cauchy" on all), 2 to 10 ns a point and step, with
        memory for one set of points a thread; a user's own in PyTorch, with O(B H N f) memory.

    Transforms:
        backward; `refine` is not traced by torch.compile, torch.export or torch.func.

    References:
        Marquardt, "An algorithm for least-squares estimation of nonlinear parameters", 1963; Bartoli, Sturm,
        "Nonlinear estimation of the fundamental matrix with minimal parameters", PAMI 2004; Blondel et al.,
        "Efficient and Modular Implicit Differentiation", NeurIPS 2022, arXiv 2105.15183; Shekhovtsov, arXiv 2512.19850
        (the loss of MAGSAC++).

    Example:
        >>> import torch, difflayers as dl
        >>> points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 9.0]])
        >>> start = torch.tensor([[[0.7, -0.7, 0.1]]])
        >>> refiner = dl.ransac.LevenbergMarquardt()
        >>> line = refiner.refine(dl.ransac.Line2D(), start, points[None], None, torch.tensor([0.5]))
        >>> (line / line[..., :1]).round(decimals=4) + 0.0
        tensor([[[ 1., -1.,  0.]]])
    """

    def __init__(self, loss: str = "truncated", *, steps: int = 25) -> None:
        function = "difflayers.ransac.LevenbergMarquardt"
        self.loss = _checks.choice(function, "loss", loss, tuple(LOSSES))
        self.steps = _checks.integer(function, "steps", steps, minimum=0)

    def refine(
        self, solver: MinimalSolver, models: Tensor, points: Tensor, mask: Tensor | None, threshold: Tensor
    ) -> Tensor:
        """Models `[B, H, *model_shape]` -> those of least robust loss near by."""
        differentiated = torch.is_grad_enabled() and points.requires_grad
        name = COMPILED.get((solver.problem or "", solver.kernel or ""))
        compiled = name is not None and points.device.type == "cpu" and _ops.has_kernel("refine_models", points.device)
        if solver.freedom <= 0 and (differentiated or not compiled):
            raise UnsupportedOperationError(
                f"difflayers.ransac.LevenbergMarquardt: {type(solver).__name__} does not say how a model moves; give "
                f"it freedom and retract(models, step), or use another refiner"
            )
        exact, wide, width = models.detach().double(), points.detach().double(), threshold.detach().double()
        if name is not None and compiled:
            better, _ = _ops.refine_models(exact.flatten(2), wide, mask, width, name, self.loss, self.steps)
        else:
            better, _ = descend(solver, LOSSES[self.loss], exact, wide, mask, width, self.steps)
        better = better.view_as(exact).to(models.dtype)
        if not differentiated or not better.numel():
            return better
        return differentiable_optimum(solver, LOSSES[self.loss], better, points, mask, threshold)

    def __repr__(self) -> str:
        return f"LevenbergMarquardt({self.loss!r}, steps={self.steps})"
