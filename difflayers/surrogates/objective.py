"""The user's objective: called on batches, checked, and differentiated the way that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..errors import Error

__all__ = ["GRADIENTS", "Objective", "ObjectiveError"]

GRADIENTS = ("autograd", "score", "fitted")


class ObjectiveError(Error, ValueError):
    """The objective, or its gradient, is NaN at a feasible solution.

    Attributes:
        solution: that solution.
        result: the `SurCoResult` of everything that was found before, or None.
    """

    def __init__(self, message: str, solution: Tensor | None = None, result: Any = None) -> None:
        super().__init__(message)
        self.solution, self.result = solution, result


class Objective:
    """Values, and gradients where asked for, of batches of solutions.

    Args:
        function: the caller, for messages.
        objective: solutions `[B, *cost_shape]` -> values `[B]`.
        gradient: "autograd", "score", "fitted", or a function from solutions `[B, *cost_shape]` to gradients of
            that shape.
        on_nan: "raise" or "skip".
    """

    def __init__(self, function: str, objective: Callable[[Tensor], Tensor], gradient: Any, on_nan: str) -> None:
        if not callable(objective):
            raise TypeError(f"{function}: argument 'objective' must be callable, got {type(objective).__name__}")
        self.function, self.objective, self.gradient, self.on_nan = function, objective, gradient, on_nan
        self.undefined = 0

    def __call__(self, solutions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Values `[B]`, detached, NaN where undefined; with "autograd" also gradients, finite."""
        if self.gradient != "autograd":
            with torch.no_grad():
                values = self._checked(self.objective(solutions), len(solutions))
            return self._report(values, torch.zeros_like(values, dtype=torch.bool), solutions), None
        with torch.enable_grad():
            at = solutions.detach().requires_grad_()
            values = self._checked(self.objective(at), len(solutions))
            if not values.requires_grad:
                raise ValueError(
                    f"{self.function}: the objective must be differentiable by the solution, got values that do not "
                    f"require a gradient; for a black box pass objective_gradient='score', 'fitted' or a function"
                )
            gradients = torch.autograd.grad(values.sum(), at, allow_unused=True)[0]
        if gradients is None:
            gradients = torch.zeros_like(at)
        return self._cleaned(values.detach(), gradients, solutions)

    def gradients(self, solutions: Tensor) -> Tensor:
        """The user's own gradients at solutions `[B, *cost_shape]`."""
        with torch.no_grad():
            gradients = self.gradient(solutions)
        if not isinstance(gradients, Tensor) or gradients.shape != solutions.shape:
            came = tuple(gradients.shape) if isinstance(gradients, Tensor) else type(gradients).__name__
            raise ValueError(
                f"{self.function}: the function 'objective_gradient' must return gradients of shape "
                f"{tuple(solutions.shape)}, that of the solutions, got {came}"
            )
        values = solutions.new_zeros(len(solutions))
        return self._cleaned(values, gradients.detach().to(solutions), solutions)[1]

    def _checked(self, values: Any, size: int) -> Tensor:
        if not isinstance(values, Tensor) or values.shape != (size,):
            came = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"{self.function}: the objective must return a tensor of one value per solution, shape ({size},) for "
                f"solutions [{size}, *cost_shape], got {came}"
            )
        return values if values.is_floating_point() else values.double()

    def _cleaned(self, values: Tensor, gradients: Tensor, solutions: Tensor) -> tuple[Tensor, Tensor]:
        if _checks.all_finite(gradients) and _checks.all_finite(values):
            return values, gradients  # nearly always
        bad = ~gradients.isfinite()
        rows = bad.flatten(1).any(1) & values.isfinite()  # at infinite values no gradient is expected
        return self._report(values, rows, solutions), torch.where(bad, 0.0, gradients)

    def _report(self, values: Tensor, bad_gradient: Tensor, solutions: Tensor) -> Tensor:
        values = values.detach()
        bad = values.isnan() | bad_gradient
        count = int(bad.sum())
        if count:
            self.undefined += count
            if self.on_nan == "raise":
                row = int(bad.nonzero()[0])
                what = "the objective is NaN" if bool(values[row].isnan()) else "its gradient is NaN or infinite"
                raise ObjectiveError(
                    f"{self.function}: {what} at a solution (row {row} of {len(values)}, in the exception's "
                    f".solution); mend the objective, or pass on_nan='skip' to go on without such solutions",
                    solutions[row].detach().clone(),
                )
        return values
