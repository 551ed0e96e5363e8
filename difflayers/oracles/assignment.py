"""One task for each agent."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _checks
from ._ortools import solver_module
from .base import Instance, Oracle
from .graph import checked_mask
from .result import Row, Status

__all__ = ["Assignment"]


class Assignment(Oracle):
    r"""The cheapest assignment of n tasks to n agents: solutions are permutation matrices.

    $$y(C) = \arg\min \{ \sum_{ij} C_{ij} y_{ij} : y \in \{0, 1\}^{n \times n},\ y 1 = 1,\ y^\top 1 = 1 \};$$

    row i is agent i, column j task j.

    Args:
        n: number of agents and of tasks.
        settings: on_failure, time_limit, workers, cache: see `difflayers.oracles.Oracle`.

    `with_parameters` takes `available`, bool `[..., n, n]`: the pairs that may be chosen in each row of the batch.

    Returns:
        Of `solve` with costs `[..., n, n]`: permutation matrices in that shape and dtype.

    Raises:
        TypeError, ValueError: n is not a non-negative integer.

    Cost:
        O(n^3) a row (SciPy's shortest augmenting paths), without Python's lock.

    Transforms:
        none by itself; gradients come from a rule, see `difflayers.SolverLayer`.

    References:
        Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Transactions on Aerospace and Electronic
        Systems 52(4), 2016 (SciPy's method).

    Example:
        >>> import torch, difflayers as dl
        >>> dl.oracles.Assignment(2).solve(torch.tensor([[1.0, 2.0], [1.0, 4.0]]))
        tensor([[0., 1.],
                [1., 0.]])
    """

    name = "difflayers.oracles.Assignment"
    releases_gil = True

    def __init__(self, n: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.n = _checks.integer(self.name, "n", n, minimum=0)

    @property
    def cost_shape(self) -> tuple[int, ...]:
        """(n, n), row = agent."""
        return (self.n, self.n)

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """available, (n, n)."""
        return {"available": (self.n, self.n)}

    def _check_parameters(self) -> None:
        checked_mask(self.name, "available", self.parameters["available"])

    def _solve_rows(self, costs: np.ndarray, instances: list[Instance], time_limit: float | None) -> list[Row]:
        solver_module(self.name, "scipy.optimize")  # missing, it is an error of its own and not one of each row
        return super()._solve_rows(costs, instances, time_limit)

    def _solve_row(self, cost: np.ndarray, instance: Instance, deadline: float | None) -> Row:
        match = solver_module(self.name, "scipy.optimize").linear_sum_assignment
        available = instance.get("available")
        if np.abs(cost).max(initial=0.0) > np.finfo(np.float64).max / 8:
            cost = np.ldexp(cost, -64)  # SciPy adds costs up on its way, which must not overflow
        if available is not None:
            cost = np.where(available, cost, np.inf)
        try:
            agents, tasks = match(cost)
        except ValueError as error:
            if available is None or "infeasible" not in str(error):
                raise
            return Row(None, Status.INFEASIBLE, reason="no perfect matching among the available pairs")
        solution = np.zeros(self.cost_shape)
        solution[agents, tasks] = 1.0
        return Row(solution, Status.OPTIMAL)

    def _is_feasible(self, solution: np.ndarray, instance: Instance) -> bool:
        return bool((solution.sum(0) == 1).all() and (solution.sum(1) == 1).all())
