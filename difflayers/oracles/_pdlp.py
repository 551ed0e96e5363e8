"""PDLP by its own interface, the only one that starts from a solution that is given."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from ._cp_sat import Outcome
from ._ortools import load, normalised, remaining, solver_module
from ._rows import LinearConstraints
from .result import Status

NEAR = 0.05  # relative distance of costs beyond which a start is no better than none
SLICE = 1.0  # seconds after which it lets other threads run, and Ctrl-C through; it goes on from where it was


class WarmStarted:
    """A linear program in PDLP, and the ends of solves that next ones start from, of one thread.

    Args:
        problem: the constraints.
        size: how many ends to remember; the oldest is forgotten first.
    """

    def __init__(self, problem: LinearConstraints, size: int) -> None:
        self.module = load("ortools.pdlp.python.pdlp")
        sparse = solver_module("difflayers.oracles.LinearProgram", "scipy.sparse")
        self.program = self.module.QuadraticProgram()
        self.program.resize_and_initialize(problem.n, problem.matrix.shape[0])
        self.program.constraint_matrix = sparse.csc_matrix(problem.matrix)
        self.program.variable_lower_bounds, self.program.variable_upper_bounds = problem.lower, problem.upper
        self.parameters = load("ortools.pdlp.solvers_pb2").PrimalDualHybridGradientParams()
        self.reasons = load("ortools.pdlp.solve_log_pb2")
        self.costs = deque[np.ndarray](maxlen=size)
        self.ends = deque[Any](maxlen=size)

    def minimise(self, cost: np.ndarray, low: np.ndarray, high: np.ndarray, deadline: float | None) -> Outcome:
        """As the models of the other methods; the solver's lock on the interpreter is held for a second at most."""
        scaled, _ = normalised(cost)
        self.program.objective_vector = scaled
        self.program.constraint_lower_bounds, self.program.constraint_upper_bounds = low, high
        start = self._nearest(scaled)
        while True:
            seconds = remaining(deadline)
            if seconds == 0.0:
                return Outcome(Status.TIMEOUT, None, -math.inf)
            self.parameters.termination_criteria.time_sec_limit = SLICE if seconds is None else min(seconds, SLICE)
            given = () if start is None else (start,)
            result = self.module.primal_dual_hybrid_gradient(self.program, self.parameters, *given)
            start = self.module.PrimalAndDualSolution()
            start.primal_solution, start.dual_solution = result.primal_solution, result.dual_solution
            reason = result.solve_log.termination_reason
            if reason == self.reasons.TERMINATION_REASON_TIME_LIMIT:
                continue
            if reason == self.reasons.TERMINATION_REASON_OPTIMAL:
                self.costs.append(scaled)
                self.ends.append(start)
                return Outcome(Status.OPTIMAL, np.array(result.primal_solution), -math.inf)
            if reason in (
                self.reasons.TERMINATION_REASON_PRIMAL_INFEASIBLE,
                self.reasons.TERMINATION_REASON_DUAL_INFEASIBLE,
                self.reasons.TERMINATION_REASON_PRIMAL_OR_DUAL_INFEASIBLE,
            ):
                return Outcome(Status.INFEASIBLE, None, math.inf)
            return Outcome(Status.FAILED, None, -math.inf, f"PDLP stopped with reason {reason}")

    def _nearest(self, cost: np.ndarray) -> Any:
        """The end of the solve whose costs are the nearest, if they are near."""
        if not self.costs:
            return None
        distance = np.linalg.norm(np.stack(self.costs) - cost, axis=1)
        best = len(distance) - 1 - int(distance[::-1].argmin())  # the newest of equal ones
        return self.ends[best] if distance[best] <= NEAR * np.linalg.norm(cost) else None
