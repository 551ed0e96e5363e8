"""Mixed-integer linear programs."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _checks
from ._cp_sat import Outcome
from ._mip import MixedIntegerModel
from ._ortools import array
from ._rows import LinearConstraints
from .base import Instance, Oracle
from .per_thread import PerThread
from .result import Row, Status

__all__ = ["IntegerProgram"]

BACKENDS = {"scip": "SCIP", "cp_sat": "SAT"}


class IntegerProgram(Oracle):
    r"""A linear program some or all of whose variables are integers.

    $$\min_x c^\top x \quad\text{s.t.}\quad A_{ub} x \le b_{ub},\; A_{eq} x = b_{eq},\; l \le x \le u,\;
    x_j \in \mathbb{Z} \text{ for } j \in I.$$

    Arguments and default bounds are those of `scipy.optimize.linprog`. A specialised oracle (ShortestPath,
    Assignment, Knapsack, ...) is many times faster where one fits.

    Args:
        A_ub: (rows, n), dense or of scipy.sparse.
        b_ub: (rows,).
        A_eq: (rows, n).
        b_eq: (rows,).
        bounds: (lower, upper) for all variables or a sequence of n such pairs; None = no bound.
        integrality: which variables are integers: 1 or 0 for all, or `[n]` of them.
        n: the number of variables, where no other argument says it.
        method: "scip", or "cp_sat" (integers only, all with finite bounds).
        settings: on_failure, time_limit, workers, cache: see `difflayers.oracles.Oracle`.

    Returns:
        Of `solve` with costs `[..., n]`: x, in that shape and dtype.

    Raises:
        TypeError: an argument that is not of numbers.
        ValueError: shapes that do not fit, NaN, bounds that are no pairs, "cp_sat" with continuous or unbounded
            variables.

    Cost:
        One branch and bound a row; the model is kept by every thread and only the objective, b_ub and b_eq
        (`with_parameters`) change. Constraints hold within 1e-5, relative to the size of a row's terms; integer
        variables are exactly integers.

    Transforms:
        none by itself; gradients come from a rule, see `difflayers.SolverLayer`.

    Example:
        >>> import torch, difflayers as dl
        >>> program = dl.oracles.IntegerProgram(A_ub=[[2.0, 1.0]], b_ub=[5.0], bounds=(0, 2))
        >>> program.solve(torch.tensor([-3.0, -1.0]))
        tensor([2., 1.])
    """

    name = "difflayers.oracles.IntegerProgram"
    releases_gil = True

    def __init__(
        self,
        A_ub: Any = None,
        b_ub: Any = None,
        A_eq: Any = None,
        b_eq: Any = None,
        bounds: Any = (0, None),
        *,
        integrality: Any = 1,
        n: int | None = None,
        method: str = "scip",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if n is not None:
            n = _checks.integer(self.name, "n", n, minimum=0)
        self.constraints = LinearConstraints(self.name, A_ub, b_ub, A_eq, b_eq, bounds, n)
        which = array(self.name, "integrality", integrality)
        if which.shape not in ((), (self.constraints.n,)) or not np.isin(which, (0, 1)).all():
            raise ValueError(
                f"{self.name}: argument 'integrality' must be 0 or 1, one or {self.constraints.n} of them, got "
                f"{integrality!r}"
            )
        self.integer = np.broadcast_to(which.astype(bool), (self.constraints.n,)).copy()
        self.method = _checks.choice(self.name, "method", method, tuple(BACKENDS))
        lower, upper = self.constraints.lower, self.constraints.upper
        if self.method == "cp_sat" and not (self.integer & np.isfinite(lower) & np.isfinite(upper)).all():
            raise ValueError(
                f"{self.name}: method 'cp_sat' needs every variable to be an integer with finite bounds; use 'scip'"
            )
        self._models = PerThread()

    @property
    def cost_shape(self) -> tuple[int, ...]:
        """(n,)."""
        return (self.constraints.n,)

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """b_ub and b_eq, in the shapes they were given."""
        return self.constraints.parameter_shapes

    def _model(self, method: str, instance: Instance) -> MixedIntegerModel:
        problem = self.constraints
        sides = problem.sides(instance)
        model = self._models.get(
            method,
            lambda: MixedIntegerModel(
                BACKENDS[method], problem.matrix, *sides, problem.lower, problem.upper, self.integer
            ),
        )
        model.set_rows(problem.matrix, *sides)
        return model

    def _solve_row(self, cost: np.ndarray, instance: Instance, deadline: float | None) -> Row:
        problem = self.constraints
        if (problem.lower > problem.upper).any():
            return Row(None, Status.INFEASIBLE, reason="a lower bound is above its upper bound")
        if problem.n == 0:
            holds = problem.hold(np.zeros(0), instance)
            return Row(np.zeros(0), Status.OPTIMAL) if holds else Row(None, Status.INFEASIBLE)
        model = self._model(self.method, instance)
        found = model.minimise(cost, deadline)
        if self.method == "cp_sat" and found.status == Status.FAILED:
            # it calls some infeasible programs invalid (3x - 3y = 4)
            model = self._model("scip", instance)
            found = model.minimise(cost, deadline)
        if found.status in (Status.INFEASIBLE, Status.UNBOUNDED) and cost.any():
            # solvers mix the two up, and feasibility does not depend on the costs
            feasible = model.minimise(np.zeros(problem.n), deadline)
            found = Outcome(Status.UNBOUNDED, None, -np.inf) if feasible.values is not None else feasible
        if found.values is None:
            return Row(None, found.status, reason=found.reason)
        solution = np.where(self.integer, np.rint(found.values), found.values)
        return Row(solution + 0.0, found.status, found.bound)  # + 0.0: no negative zeros

    def _is_feasible(self, solution: np.ndarray, instance: Instance) -> bool:
        return self.constraints.hold(solution, instance)
