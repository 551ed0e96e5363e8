"""A CP-SAT model that stays while its objective changes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ._ortools import integer_costs, interruptible, load, remaining, restored
from .result import Status


class Outcome(NamedTuple):
    """What a solver found: values of the variables (None: nothing), and a lower bound of the optimum."""

    status: Status
    values: np.ndarray | None
    bound: float
    reason: str = ""


class SatModel:
    """A CP-SAT model of one thread; a builder adds variables and constraints to `model`.

    One worker: the batch is what runs in parallel. CP-SAT restarts at every solve, but the model is kept.
    """

    def __init__(self) -> None:
        self.cp = load("ortools.sat.python.cp_model")
        self.model = self.cp.CpModel()
        self.solver = self.cp.CpSolver()
        self.solver.parameters.num_workers = 1
        self.solver.parameters.linearization_level = 2  # circuits and cuts: three times faster than the default
        # CP-SAT's own handling of Ctrl-C would end one row and go on with the next
        self.solver.parameters.catch_sigint_signal = False

    def booleans(self, count: int) -> list[Any]:
        """New variables in {0, 1}."""
        return [self.model.new_bool_var("") for _ in range(count)]

    def weighted_sum(self, variables: list[Any], weights: np.ndarray) -> Any:
        """A linear expression with integer weights."""
        return self.cp.LinearExpr.weighted_sum(variables, weights.tolist())

    def minimise(
        self,
        variables: list[Any],
        costs: np.ndarray,
        *,
        ranges: np.ndarray | float = 1.0,
        deadline: float | None = None,
        hint: np.ndarray | None = None,
    ) -> Outcome:
        """Minimises costs times variables.

        Args:
            variables: those with costs.
            costs: float64 (len(variables),).
            ranges: the largest magnitude of each variable.
            deadline: of `time.monotonic()`.
            hint: values of the variables to begin with.

        Returns:
            The outcome; values are of `variables`, in their order.
        """
        seconds = remaining(deadline)
        if seconds == 0.0:
            return Outcome(Status.TIMEOUT, None, -math.inf)
        integers, exponent, error = integer_costs(costs, ranges)
        self.model.clear_hints()
        if hint is not None:
            for variable, value in zip(variables, hint.tolist(), strict=True):
                self.model.add_hint(variable, round(value))
        self.model.minimize(self.cp.LinearExpr.weighted_sum(variables, integers.tolist()))
        self.solver.parameters.max_time_in_seconds = math.inf if seconds is None else seconds
        status = interruptible(lambda: self.solver.solve(self.model), self.solver.stop_search)
        if status == self.cp.INFEASIBLE:
            return Outcome(Status.INFEASIBLE, None, math.inf)
        bound = restored(self.solver.best_objective_bound - error, exponent)
        if status in (self.cp.OPTIMAL, self.cp.FEASIBLE):
            every = np.array(self.solver.response_proto.solution, dtype=np.float64)
            values = every[[variable.index for variable in variables]]
            return Outcome(Status.OPTIMAL if status == self.cp.OPTIMAL else Status.FEASIBLE, values, bound)
        if status == self.cp.UNKNOWN:
            return Outcome(Status.TIMEOUT, None, -math.inf)  # the bound that it states then is 0, proved or not
        return Outcome(Status.FAILED, None, -math.inf, f"CP-SAT found the model invalid: {self.model.validate()}")
