"""Levenberg-Marquardt in plain PyTorch, for models that the compiled library does not know."""

from __future__ import annotations

import torch
from torch import Tensor

from ..solver import MinimalSolver
from ._losses import Loss

__all__ = ["descend"]


def _expand(flags: Tensor, like: Tensor) -> Tensor:
    return flags.reshape(*flags.shape, *(1,) * (like.dim() - flags.dim()))


def _vectors(solver: MinimalSolver, models: Tensor, points: Tensor) -> Tensor:
    return solver.residual_vector(models, points.unsqueeze(1))  # shape: [B, H, N, c]


def _losses(vectors: Tensor, loss: Loss, mask: Tensor | None, threshold: Tensor) -> Tensor:  # shape: [B, H]
    ratio = vectors.square().sum(-1) / threshold.square()[:, None, None]
    # an undefined residual is an infinite one; infinity itself would make losses that cannot be compared
    value = loss.value(ratio.nan_to_num(nan=1e30, posinf=1e30))
    return (value if mask is None else torch.where(mask.unsqueeze(1), value, 0)).sum(-1)


def _normal(
    solver: MinimalSolver, loss: Loss, models: Tensor, points: Tensor, mask: Tensor | None, threshold: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The matrix `[B, H, f, f]` and the vector `[B, H, f]` of the normal equations of a step, and the number of
    equations `[B, H]`."""
    # a step for each point, so that one backward pass a component gives the derivatives at all of them
    apart, each = models.unsqueeze(2), points[:, None, :, None]
    with torch.enable_grad():
        step = models.new_zeros(*models.shape[:2], points.shape[1], solver.freedom, requires_grad=True)
        vectors = solver.residual_vector(solver.retract(apart, step), each).squeeze(-2)  # shape: [B, H, N, c]
        rows = [torch.autograd.grad(v.sum(), step, retain_graph=True)[0] for v in vectors.unbind(-1)]
    jacobian, vectors = torch.stack(rows, -2), vectors.detach()  # shape: [B, H, N, c, f]
    inverse_square = 1 / threshold.square()[:, None, None]
    weight = loss.slope(vectors.square().sum(-1) * inverse_square) * inverse_square
    good = vectors.isfinite().all(-1) & jacobian.isfinite().flatten(3).all(-1) & weight.isfinite()
    if mask is not None:
        good = good & mask.unsqueeze(1)
    weight = torch.where(good, weight, 0)
    vectors = torch.where(good.unsqueeze(-1), vectors, 0)
    jacobian = torch.where(good[..., None, None], jacobian, 0)
    weighted = weight[..., None, None] * jacobian
    matrix = weighted.flatten(2, 3).mT @ jacobian.flatten(2, 3)
    vector = (weighted.flatten(2, 3).mT @ vectors.flatten(2).unsqueeze(-1)).squeeze(-1)
    return matrix, vector, (weight > 0).sum(-1) * vectors.shape[-1]


@torch.no_grad()
def descend(
    solver: MinimalSolver,
    loss: Loss,
    models: Tensor,
    points: Tensor,
    mask: Tensor | None,
    threshold: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Models `[B, H, *model_shape]` -> better ones and their losses `[B, H]`; all tensors float64.

    Marquardt's damping, one for each model. O(B H N f^2) time a step and O(B H N f) memory.
    """
    finite = models.flatten(2).isfinite().all(-1)
    given, models = models, torch.where(_expand(finite, models), models, 0)  # decompositions raise on NaN
    before = _losses(_vectors(solver, models, points), loss, mask, threshold)
    # a model that violates its constraints a little may have a smaller loss than any that does not
    models = solver.retract(models, models.new_zeros(*models.shape[:2], solver.freedom))
    usable = finite & models.flatten(2).isfinite().all(-1)
    if not bool(usable.any()):
        return given, before
    models = torch.where(_expand(usable, models), models, models[usable][0])
    stepped = torch.zeros_like(usable)
    value = _losses(_vectors(solver, models, points), loss, mask, threshold)
    damping = torch.full_like(value, 1e-4)
    for _ in range(steps):
        matrix, vector, equations = _normal(solver, loss, models, points, mask, threshold)
        diagonal = matrix.diagonal(dim1=-2, dim2=-1)
        largest = diagonal.amax(-1, keepdim=True)
        # a direction that no point feels must not make the matrix singular
        added = damping.unsqueeze(-1) * torch.maximum(diagonal, 1e-9 * largest) + (largest <= 0)
        step, failed = torch.linalg.solve_ex(matrix + torch.diag_embed(added), -vector)
        expected = -(vector * step).sum(-1)
        usable = usable & (equations >= solver.freedom) & (failed == 0) & (expected > 1e-14 * value) & (damping < 1e8)
        if not usable.any():
            break
        step = torch.where(usable.unsqueeze(-1), step, 0)
        moved = solver.retract(models, step)
        after = _losses(_vectors(solver, moved, points), loss, mask, threshold)
        better = usable & (after < value) & moved.flatten(2).isfinite().all(-1)
        stepped |= better
        models = torch.where(_expand(better, models), moved, models)
        value = torch.where(better, after, value)
        damping = torch.where(better, (damping / 10).clamp(min=1e-9), (damping * 10).clamp(min=1e-6))
    improved = stepped & (value < before)
    return torch.where(_expand(improved, models), models, given), torch.where(improved, value, before)
