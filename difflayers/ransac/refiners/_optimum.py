"""The gradient of refined models by the points: that of a stationary point of the robust loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ... import implicit
from ..solver import MinimalSolver
from ._losses import Loss

__all__ = ["differentiable_optimum"]

POLISHING = 3  # steps of Newton's method from where the refinement stopped
SETTLED = 1e-7  # the length of a last step, in thresholds: the Hessian before it is that after it
CONVERGED = 1e-6  # the length of a further step, in thresholds
WORST_CONDITION = 1e10  # of the Hessian in units of its diagonal


def differentiable_optimum(
    solver: MinimalSolver, loss: Loss, models: Tensor, points: Tensor, mask: Tensor | None, threshold: Tensor
) -> Tensor:
    r"""Models `[B, H, *model_shape]` at or near a minimum of the loss, with the gradient of that minimum by the points.

    The step z of `solver.retract` to the minimum is a root of the loss's gradient by z; `implicit.root` differentiates
    that root: dz = -H^-1 (d grad / d points) dpoints with the exact Hessian H of the loss. Points whose
    loss is constant have no part in it. Before, a few steps of Newton's method end the search where Levenberg and
    Marquardt's, which leaves out half of the Hessian, would take long. A model where these do not converge, or where
    the Hessian is singular or no minimum's, comes back as it was and without gradient.

    Cost:
        For V models of K points with a part and f degrees of freedom: about 4 f evaluations of the loss; O(V K) memory
        times the number of operations in it.
    """
    wide, width = points.double(), threshold.detach().double()
    exact = models.detach().double()
    with torch.no_grad():
        ratio = solver.squared_residual(exact, wide.unsqueeze(1)) / width.square()[:, None, None]
        active = ratio < (1 if loss.bounded else torch.inf)
        if mask is not None:
            active &= mask.unsqueeze(1)
        count = active.sum(-1)
        row, slot = ((count >= 1) & exact.flatten(2).isfinite().all(-1)).nonzero(as_tuple=True)
        if len(row) == 0:
            return models
        # those with a part first; the first of them stands in for what is beyond the count
        index = active[row, slot].int().sort(dim=-1, descending=True, stable=True).indices[:, : int(count.max())]
        present = torch.arange(index.shape[1], device=index.device) < count[row, slot].unsqueeze(-1)
        index = torch.where(present, index, index[:, :1])
    taken = wide[row.unsqueeze(-1), index]  # shape: [V, K, d]
    found, solution, scale, inverse, good = _polished(
        solver, loss, exact[row, slot], taken.detach(), present, width[row]
    )
    if not (_overrides(solver, "residual_vector") or _overrides(solver, "squared_residual")):
        # a bare distance has no derivative where it is 0, and autograd's stand-in, 0, would count for one
        good &= ~(present & (ratio[row, slot].gather(-1, index) == 0)).any(-1)
    row, slot, taken, present = row[good], slot[good], taken[good], present[good]
    found, solution, scale, inverse = found[good], solution[good], scale[good], inverse[good]
    objective = _objective(solver, loss, found, present, width[row])

    def stationarity(z: Tensor, at: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            return torch.autograd.grad(objective(z * scale, at).sum(), z, create_graph=True)[0]

    step = implicit.root(
        stationarity, solution, taken, batch_dims=1, tolerance=float("inf"), on_failure="zero",
        solve=lambda product, g: (inverse @ g.unsqueeze(-1)).squeeze(-1),
    )  # fmt: skip
    refined = solver.retract(found, step * scale).to(models.dtype)
    return models.detach().index_put((row, slot), refined)


def _objective(
    solver: MinimalSolver, loss: Loss, models: Tensor, present: Tensor, threshold: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss `[V]` after a step `[V, f]`, of points `[V, K, d]`; bounded losses only have points below the bound."""
    inverse_square = (1 / threshold.square()).unsqueeze(-1)

    def objective(step: Tensor, points: Tensor) -> Tensor:
        moved = solver.retract(models, step)
        if _overrides(solver, "residual_vector"):
            square = solver.residual_vector(moved, points).square().sum(-1)
        else:
            square = solver.squared_residual(moved, points)
        ratio = square * inverse_square
        value = ratio if loss.bounded else loss.value(ratio)
        return torch.where(present, value, 0).sum(-1)

    return objective


def _overrides(solver: MinimalSolver, name: str) -> bool:
    return getattr(type(solver), name) is not getattr(MinimalSolver, name)


def _derivatives(objective: Callable[[Tensor, Tensor], Tensor], points: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient `[V, f]` and the Hessian `[V, f, f]` at step 0."""
    with torch.enable_grad():
        step = zero.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(step, points).sum(), step, create_graph=True)
        rows = [torch.autograd.grad(g.sum(), step, retain_graph=True)[0] for g in gradient.unbind(-1)]
    hessian = torch.stack(rows, -2)
    return gradient.detach(), (hessian + hessian.mT) / 2


@torch.no_grad()
def _polished(
    solver: MinimalSolver, loss: Loss, models: Tensor, points: Tensor, present: Tensor, threshold: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Models next to the minimum; the step from there to the minimum `[V, f]`, times the next; the scale of each degree
    of freedom `[V, f]` that makes the Hessian's diagonal 1; the inverse of the Hessian so scaled; and where all that
    exists, `[V]`.

    Step and Hessian are of the same model: at another one the directions of steps may be others."""
    zero = models.new_zeros(len(models), solver.freedom)
    identity = torch.eye(solver.freedom, dtype=models.dtype, device=models.device)
    # not that of the models given: rounded to float32 they violate their constraints, and may have a smaller loss
    value = _objective(solver, loss, models, present, threshold)(zero, points)
    left = POLISHING
    while True:
        objective = _objective(solver, loss, models, present, threshold)
        gradient, hessian = _derivatives(objective, points, zero)
        diagonal = hessian.diagonal(dim1=-2, dim2=-1)
        defined = hessian.flatten(1).isfinite().all(-1) & gradient.isfinite().all(-1) & (diagonal > 0).all(-1)
        scale = torch.where(defined.unsqueeze(-1), diagonal, 1).rsqrt()
        scaled = scale.unsqueeze(-1) * hessian * scale.unsqueeze(-2)
        scaled = torch.where(defined[:, None, None], scaled, identity)
        size, directions = torch.linalg.eigh(scaled)
        defined &= size[:, 0] * WORST_CONDITION > size[:, -1]
        inverse = directions @ (directions.mT / torch.where(defined.unsqueeze(-1), size, 1).unsqueeze(-1))
        step = -(inverse @ torch.where(defined.unsqueeze(-1), scale * gradient, 0).unsqueeze(-1)).squeeze(-1)
        length = step.norm(dim=-1)
        if left == 0 or not bool((defined & (length > SETTLED)).any()):
            return models, step, scale, inverse, defined & (length < CONVERGED)
        moved = solver.retract(models, step * scale)
        after = _objective(solver, loss, moved, present, threshold)(zero, points)
        # at the minimum a step changes the loss by rounding errors only, and those of a loss of almost 0 are not small
        better = defined & (after <= value * (1 + 1e-12) + CONVERGED**2) & moved.flatten(1).isfinite().all(-1)
        models = torch.where(better[(..., *(None,) * (models.dim() - 1))], moved, models)
        value = torch.where(better, after, value)
        left -= 1
