"""A mixed-integer program in SCIP that stays while costs, bounds of rows and coefficients change."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._cp_sat import Outcome
from ._ortools import interruptible, load, normalised, remaining, restored
from .result import Status


class MixedIntegerModel:
    """low <= A x <= high, lower <= x <= upper, some x integers, in a solver of one thread.

    Keeping the model is worth up to nine times the speed of building it anew.
    """

    def __init__(
        self,
        backend: str,
        matrix: Any,
        low: np.ndarray,
        high: np.ndarray,
        lower: np.ndarray,
        upper: np.ndarray,
        integer: np.ndarray,
    ) -> None:
        """Builds the model.

        Args:
            backend: "SCIP" or "SAT".
            matrix: (rows, n), dense or of scipy.sparse.
            low: (rows,), may be -inf.
            high: (rows,), may be inf.
            lower: (n,), may be -inf.
            upper: (n,), may be inf.
            integer: bool (n,).
        """
        module = load("ortools.linear_solver.pywraplp")
        self.module, self.solver = module, module.Solver.CreateSolver(backend)
        if self.solver is None:
            raise RuntimeError(f"this build of OR-Tools has no solver {backend}")
        # SCIP's own handling of Ctrl-C would end one row and go on with the next
        settings = {"SCIP": "misc/catchctrlc = FALSE", "SAT": "num_workers:1 catch_sigint_signal:false"}
        self.solver.SetSolverSpecificParametersAsString(settings[backend])
        self.variables = [
            self.solver.Var(*edges, kind, "")
            for *edges, kind in zip(lower.tolist(), upper.tolist(), integer.tolist(), strict=True)
        ]
        self.matrix, self.low, self.high = matrix, low.copy(), high.copy()
        self.rows = [self.solver.Constraint(*edges) for edges in zip(low.tolist(), high.tolist(), strict=True)]
        if isinstance(matrix, np.ndarray):
            where, entries = np.nonzero(matrix), matrix[np.nonzero(matrix)]
        else:
            coordinates = matrix.tocoo()
            where, entries = (coordinates.row, coordinates.col), coordinates.data
        for i, j, entry in zip(where[0].tolist(), where[1].tolist(), entries.tolist(), strict=True):
            self.rows[i].SetCoefficient(self.variables[j], entry)
        self.objective = self.solver.Objective()
        self.objective.SetMinimization()
        self.costs = np.zeros(len(lower))
        self.limited, self.usable = False, True
        self.parameters = module.MPSolverParameters()
        # 1e-4 by default, which would call solutions optimal that are not
        self.parameters.SetDoubleParam(module.MPSolverParameters.RELATIVE_MIP_GAP, 0.0)

    def set_rows(self, matrix: Any, low: np.ndarray, high: np.ndarray) -> None:
        """Changes coefficients (of dense matrices) and bounds of rows where they differ."""
        if matrix is not self.matrix:
            for i, j in np.argwhere(matrix != self.matrix).tolist():
                self.rows[i].SetCoefficient(self.variables[j], float(matrix[i, j]))
            self.matrix = matrix
        for i in np.flatnonzero((low != self.low) | (high != self.high)).tolist():
            self.rows[i].SetBounds(float(low[i]), float(high[i]))
        self.low, self.high = low, high

    def minimise(self, costs: np.ndarray, deadline: float | None = None) -> Outcome:
        """Minimises costs times x; values are not rounded."""
        seconds = remaining(deadline)
        if seconds == 0.0:
            return Outcome(Status.TIMEOUT, None, -math.inf)
        if seconds is not None or self.limited:
            self.solver.SetTimeLimit(0 if seconds is None else max(1, math.ceil(1e3 * seconds)))  # 0 = none
            self.limited = seconds is not None
        scaled, exponent = normalised(costs)
        for j in np.flatnonzero(scaled != self.costs).tolist():
            self.objective.SetCoefficient(self.variables[j], float(scaled[j]))
        self.costs = scaled
        solver: Any = self.module.Solver
        self.usable = False  # until it is back in good order: an interrupted solver stays interrupted
        state = interruptible(lambda: self.solver.Solve(self.parameters), self.solver.InterruptSolve)
        self.usable = state in (self.module.Solver.OPTIMAL, self.module.Solver.FEASIBLE, self.module.Solver.INFEASIBLE)
        if state in (solver.OPTIMAL, solver.FEASIBLE):
            values = np.array([variable.solution_value() for variable in self.variables], dtype=np.float64)
            if state == solver.OPTIMAL:
                return Outcome(Status.OPTIMAL, values, -math.inf)
            return Outcome(Status.FEASIBLE, values, restored(self.objective.BestBound(), exponent))
        if state == solver.INFEASIBLE:
            return Outcome(Status.INFEASIBLE, None, math.inf)
        if state == solver.UNBOUNDED:
            return Outcome(Status.UNBOUNDED, None, -math.inf)
        if state == solver.NOT_SOLVED and deadline is not None:
            return Outcome(Status.TIMEOUT, None, -math.inf)
        return Outcome(Status.FAILED, None, -math.inf, f"the solver stopped abnormally (status {state})")
