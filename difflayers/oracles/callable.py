"""A user's own solver as an oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from .base import Instance, Oracle
from .result import Row, Status

__all__ = ["FromCallable"]


class FromCallable(Oracle):
    """Any function from costs to a minimising solution.

    Args:
        f: takes one row's costs, a float64 array of cost_shape, and returns the solution of that shape (array or
            tensor), or None when there is none. With batched=True it takes and returns a batch `[B, *cost_shape]`.
        cost_shape: the shape of one row.
        cost_domain: "any" or "nonnegative".
        batched: whether f takes a batch.
        exact: whether f's solutions are optimal; if not, their status is FEASIBLE.
        settings: on_failure, time_limit, workers, cache: see `difflayers.oracles.Oracle`. The time limit is not imposed
            on f. With processes, f must be picklable.

    Returns:
        Of `solve` with costs `[..., *cost_shape]`: what f returns, in that shape and dtype.

    Raises:
        TypeError: f is not callable.
        ValueError: an unknown cost_domain, a negative size; of solve with batched=True, when f returns another shape.
        What f raises for a row makes that row FAILED, None makes it INFEASIBLE; with batched=True it passes as it is.

    Cost:
        One call of f a row, or a batch with batched=True.

    Transforms:
        none by itself; gradients come from a rule, see `difflayers.SolverLayer`.

    Example:
        >>> import numpy as np, torch, difflayers as dl
        >>> cheapest = dl.oracles.FromCallable(lambda cost: np.eye(len(cost))[cost.argmin()], (3,))
        >>> cheapest.solve(torch.tensor([[2.0, 1.0, 3.0]]))
        tensor([[0., 1., 0.]])
    """

    name = "difflayers.oracles.FromCallable"

    def __init__(
        self,
        f: Callable[[np.ndarray], Any],
        cost_shape: tuple[int, ...],
        *,
        cost_domain: str = "any",
        batched: bool = False,
        exact: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if not callable(f):
            raise TypeError(f"{self.name}: argument 'f' must be callable, got {type(f).__name__}")
        self.f = f
        self._shape = tuple(_checks.integer(self.name, "cost_shape", size, minimum=0) for size in cost_shape)
        self.cost_domain = _checks.choice(self.name, "cost_domain", cost_domain, ("any", "nonnegative"))
        self.batched = _checks.boolean(self.name, "batched", batched)
        self.exact = _checks.boolean(self.name, "exact", exact)

    @property
    def cost_shape(self) -> tuple[int, ...]:
        """As given."""
        return self._shape

    def _solve_rows(self, costs: np.ndarray, instances: list[Instance], time_limit: float | None) -> list[Row]:
        if not self.batched:
            return super()._solve_rows(costs, instances, time_limit)
        solutions = _array(self.f(costs.copy()))  # what f does to them must not reach the caller's
        if solutions.shape != costs.shape:
            raise ValueError(
                f"{self.name}: f must return solutions of shape {costs.shape} for a batch of costs of that shape, "
                f"got {solutions.shape}"
            )
        return [self._row(solution) for solution in solutions]

    def _solve_row(self, cost: np.ndarray, instance: Instance, deadline: float | None) -> Row:
        solution = self.f(cost.copy())
        return (
            Row(None, Status.INFEASIBLE, reason="f returned None") if solution is None else self._row(_array(solution))
        )

    def _row(self, solution: np.ndarray) -> Row:
        if solution.shape != self._shape:
            reason = f"f returned shape {solution.shape}, not cost_shape {self._shape}"
            return Row(None, Status.FAILED, reason=reason)
        if not np.isfinite(solution).all():
            return Row(None, Status.FAILED, reason="f returned NaN or infinity")
        return Row(solution.astype(np.float64), Status.OPTIMAL if self.exact else Status.FEASIBLE)


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, (Tensor, torch.nn.Parameter)) else np.asarray(value)
