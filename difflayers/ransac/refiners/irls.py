"""Iteratively reweighted least squares."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _checks, implicit
from ..scorers import MSAC, Scorer
from ..solver import MinimalSolver
from .base import Refiner

__all__ = ["IRLS"]

TOLERANCE = 1e-6  # of a fixed point that has a gradient, relative to the model


class IRLS(Refiner):
    r"""Fits the model by weighted least squares again and again, with the weights that a score gives its residuals.

    $w_i = -s'(r_i^2 / \text{threshold}^2)$ with the score s of `scorer`, then $m = \operatorname{fit}(x, w)$: where
    it converges, and `fit` minimises weighted squared residuals, the score is stationary. The gradient by the points is
    that of the fixed point (`difflayers.implicit.fixed_point`), however many steps were taken; a model that has not
    converged to 1e-6 has the gradient zero. Works for every model that has `fit`, and needs no `retract`.

    Args:
        scorer: gives the weights; default MSAC, whose weights are 1 within the threshold and 0 beyond it.
        steps: the most fits.

    Returns:
        Of `refine`: models of the shape of those given; those that cannot be fitted come back as they were.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of its range.
        UnsupportedOperationError: of `refine`, for a model without `fit`.

    Cost:
        A residual and a fit for every model and step. Backward: as many products with the Jacobian of one step as the
        model has numbers.

    Transforms:
        backward; `refine` is not traced by torch.compile, torch.export or torch.func.

    References:
        Holland, Welsch, "Robust regression using iteratively reweighted least-squares", 1977.

    Example:
        >>> import torch, difflayers as dl
        >>> points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 9.0]])
        >>> start = torch.tensor([[[0.7, -0.7, 0.1]]])
        >>> irls = dl.ransac.IRLS()
        >>> line = irls.refine(dl.ransac.Line2D(), start, points[None], None, torch.tensor([0.5]))
        >>> (line / line[..., :1]).round(decimals=4) + 0.0
        tensor([[[ 1., -1.,  0.]]])
    """

    def __init__(self, scorer: Scorer | None = None, *, steps: int = 20) -> None:
        function = "difflayers.ransac.IRLS"
        if scorer is not None and not isinstance(scorer, Scorer):
            raise TypeError(f"{function}: argument 'scorer' must be a Scorer, got {type(scorer).__name__}; try MSAC()")
        self.scorer = scorer or MSAC()
        self.steps = _checks.integer(function, "steps", steps, minimum=0)

    def refine(
        self, solver: MinimalSolver, models: Tensor, points: Tensor, mask: Tensor | None, threshold: Tensor
    ) -> Tensor:
        """Models `[B, H, *model_shape]` -> fixed points near by."""
        inverse_square = (1 / threshold.detach().double().square())[:, None, None]
        exact, wide = models.detach().double(), points.double()
        tail = (..., *(None,) * len(solver.model_shape))

        def weights(at: Tensor, of_points: Tensor) -> Tensor:
            with torch.enable_grad():
                ratio = solver.squared_residual(at, of_points.unsqueeze(1)) * inverse_square
                ratio = ratio if ratio.requires_grad else ratio.detach().requires_grad_()
                (slope,) = torch.autograd.grad(self.scorer.of_squared(ratio).sum(), ratio, create_graph=True)
            keep = slope.isfinite() if mask is None else slope.isfinite() & mask.unsqueeze(1)
            return torch.where(keep, -slope, 0).clamp(min=0)

        def fitted(at: Tensor, of_points: Tensor) -> tuple[Tensor, Tensor]:
            result, valid = solver.fit(of_points.unsqueeze(1), weights(at, of_points))
            # of a model whose sign is free, the one of the model before
            along = (result.detach() * at.detach()).flatten(2).sum(-1)
            return torch.where(along < 0, -1.0, 1.0)[tail] * result, valid

        with torch.no_grad():
            for _ in range(self.steps):
                found, valid = fitted(exact, wide.detach())
                found = torch.where((valid & found.flatten(2).isfinite().all(-1))[tail], found, exact)
                settled = (found - exact).abs().amax() <= 1e-12 * exact.abs().amax() if exact.numel() else True
                exact = found
                if settled:
                    break
        if not (torch.is_grad_enabled() and points.requires_grad) or not exact.numel():
            return exact.to(models.dtype)
        size = exact.flatten(2).norm(dim=-1)[tail]
        size = torch.where(size > 0, size, 1)

        def step(at: Tensor, of_points: Tensor) -> Tensor:
            result, valid = fitted(at * size, of_points)
            return torch.where(valid[tail], result / size, torch.nan)  # where there is no fit, it is no fixed point

        relative = implicit.fixed_point(step, exact / size, wide, batch_dims=2, tolerance=TOLERANCE, on_failure="zero")
        return (relative * size).to(models.dtype)

    def __repr__(self) -> str:
        return f"IRLS({self.scorer!r}, steps={self.steps})"
