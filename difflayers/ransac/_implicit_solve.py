"""Minimal solvers whose gradient comes from the equations that their models satisfy, not from how they were found."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from .. import _ops
from .solver import MinimalSolver, Solutions

__all__ = ["ImplicitSolver"]


class ImplicitSolver(MinimalSolver):
    r"""A solver with the gradient of the implicit function theorem.

    A model m of a sample x satisfies as many equations e(m, x) = 0 as it has degrees of freedom. Along directions T in
    which models move, dm = T z with (e_m T) z = -e_x dx: one small linear system a model, whatever found it. The
    compiled solver does that in float64; `reference`, `equations` and `tangent` say the same in PyTorch and serve
    other devices.

    Attributes:
        problem: the solver's name in the compiled library.
    """

    problem: str  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]

    @abstractmethod
    def reference(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Samples `[B, k, d]` float64 -> models `[B, max_solutions, *model_shape]`, the valid ones first, and how
        many are valid, `[B]`; no gradient."""

    @abstractmethod
    def equations(self, models: Tensor, sample: Tensor) -> Tensor:
        """Models `[V, *model_shape]`, samples `[V, k, d]` -> `[V, freedom]`, zero at solutions."""

    @abstractmethod
    def tangent(self, models: Tensor, sample: Tensor) -> Tensor:
        """Models `[V, *model_shape]`, samples `[V, k, d]` -> directions `[V, freedom, *model_shape]`."""

    def solve(self, sample: Tensor) -> Solutions:
        """Samples `[..., k, d]` -> models `[..., max_solutions, *model_shape]`, in the samples' dtype."""
        batch = sample.shape[:-2]
        flat = sample.reshape(-1, self.sample_size, self.point_size)
        models, counts, condition = _Solve.apply(flat, self)
        valid = torch.arange(self.max_solutions, device=flat.device) < counts.unsqueeze(-1)
        return Solutions(
            models.view(*batch, self.max_solutions, *self.model_shape),
            valid.view(*batch, self.max_solutions),
            condition.view(*batch, self.max_solutions) if condition.numel() or not flat.numel() else None,
        )


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sample: Tensor, solver: ImplicitSolver) -> tuple[Tensor, Tensor, Tensor]:
        exact = sample.detach().double()
        differentiated = ctx.needs_input_grad[0]
        if _ops.has_kernel("minimal_solve", sample.device):
            flat, counts, condition = _ops.minimal_solve(exact, solver.problem, differentiated)
            models = flat.view(len(exact), solver.max_solutions, *solver.model_shape)
        else:
            models, counts = solver.reference(exact)
            condition = plain_condition(solver, models, counts, exact) if differentiated else exact.new_empty(0)
        ctx.solver, ctx.dtype = solver, sample.dtype
        ctx.save_for_backward(exact, models, counts, condition)
        ctx.mark_non_differentiable(counts, condition)
        return models.to(sample.dtype), counts, condition

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        exact, models, counts, condition = ctx.saved_tensors
        solver, gradient = ctx.solver, gradients[0].double()
        if _ops.has_kernel("minimal_solve", exact.device):
            rows = gradient.reshape(len(exact), solver.max_solutions, -1)
            of_sample = _ops.minimal_backward(
                rows, models.view_as(rows), counts, exact, solver.problem, solver.worst_condition
            )
        else:
            of_sample = plain_backward(solver, gradient, models, counts, condition, exact)
        return of_sample.to(ctx.dtype), None


def _linearised(solver: ImplicitSolver, models: Tensor, sample: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tangent `[V, f, p]`, the equations' derivative along it `[V, f, f]`, its rows of unit length, and what
    their lengths were `[V, f]`."""
    with torch.enable_grad():
        models = models.detach().requires_grad_()
        values = solver.equations(models, sample)
        rows = [torch.autograd.grad(e.sum(), models, retain_graph=True)[0].flatten(1) for e in values.unbind(-1)]
    tangent = solver.tangent(models.detach(), sample).flatten(2)
    along = torch.stack(rows, 1) @ tangent.mT
    length = along.norm(dim=-1)
    length = torch.where(length > 0, length, 1.0)
    return tangent, along / length.unsqueeze(-1), length


def plain_condition(solver: ImplicitSolver, models: Tensor, counts: Tensor, sample: Tensor) -> Tensor:
    """Condition numbers `[B, solutions]` in the Frobenius norm; inf where singular or no solution."""
    condition = models.new_full(models.shape[:2], torch.inf)
    row, slot = (torch.arange(models.shape[1], device=models.device) < counts.unsqueeze(-1)).nonzero(as_tuple=True)
    if len(row):
        _, along, _ = _linearised(solver, models[row, slot], sample[row])
        condition[row, slot] = torch.linalg.cond(along, p="fro").nan_to_num(nan=torch.inf)
    return condition


def plain_backward(
    solver: ImplicitSolver, gradient: Tensor, models: Tensor, counts: Tensor, condition: Tensor, sample: Tensor
) -> Tensor:
    """The gradient by samples `[B, k, d]` of sum(gradient * models)."""
    result = torch.zeros_like(sample)
    row, slot = (condition < solver.worst_condition).nonzero(as_tuple=True)
    if len(row):
        chosen, points = models[row, slot], sample[row].detach().requires_grad_()
        tangent, along, length = _linearised(solver, chosen, points.detach())
        moved = tangent @ gradient[row, slot].flatten(1).unsqueeze(-1)
        multiplier = torch.linalg.solve(along.mT, moved).squeeze(-1)
        with torch.enable_grad():
            values = solver.equations(chosen, points)
            of_points = torch.autograd.grad((values * (multiplier / length)).sum(), points)[0]
        result.index_add_(0, row, -of_points)
    return result
