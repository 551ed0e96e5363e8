"""Linear programs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _checks
from ._certificates import Certificate, Certificates, certificate_of, normalised_rows
from ._cp_sat import Outcome
from ._ortools import interruptible, load, normalised, remaining, solver_module
from ._pdlp import WarmStarted
from ._rows import LinearConstraints
from .base import Instance, Oracle, instance_key
from .per_thread import PerThread
from .result import Row, Status

__all__ = ["LinearProgram"]

METHODS = ("glop", "highs", "pdlp")
LONG = 1e8  # seconds: no limit


class LinearProgram(Oracle):
    r"""A linear program.

    $$\min_x c^\top x \quad\text{s.t.}\quad A_{ub} x \le b_{ub},\; A_{eq} x = b_{eq},\; l \le x \le u.$$

    Arguments and default bounds are those of `scipy.optimize.linprog`. A specialised oracle (ShortestPath,
    Assignment, MinCostFlow, ...) is ten to a hundred times faster where one fits.

    Args:
        A_ub: (rows, n), dense or of scipy.sparse.
        b_ub: (rows,).
        A_eq: (rows, n).
        b_eq: (rows,).
        bounds: (lower, upper) for all variables or a sequence of n such pairs; None = no bound.
        n: the number of variables, where no other argument says it.
        method: "glop" (simplex: a vertex), "highs", or "pdlp" (first order, for large programs; its solutions are
            optimal and feasible only to 1e-6, hence FEASIBLE, and no vertices).
        certificates: how many bases to remember; 0 = none. Before a row is solved, the remembered vertex that is
            cheapest for it is proved optimal, or not, by the signs of its reduced costs
            $c_N - c_B A_B^{-1} A_N$: exactly (to 1e-9 of the row's largest cost, where solvers stop at 1e-6), all
            rows of the batch at once, and without a solve. Where several vertices are optimal, which one comes out
            depends on what was solved before. Each process has its own; all tables together stay below 128 MiB.
        warm_starts: for method="pdlp", how many solutions each thread remembers; 0 = none. A row starts from that of
            the nearest costs, if they are within 5 %. PDLP then holds Python's lock for up to a second at a time, and
            a number of `workers` means processes.
        settings: on_failure, time_limit, workers, cache: see `difflayers.oracles.Oracle`.

    Attributes:
        certified: how many rows certificates have answered so far in this process.

    Returns:
        Of `solve` with costs `[..., n]`: x, in that shape and dtype.

    Raises:
        TypeError: an argument that is not of numbers.
        ValueError: shapes that do not fit, NaN, bounds that are no pairs; certificates without
            method="glop", warm_starts without method="pdlp".

    Cost:
        One solve a row; the model is kept by every thread and only the objective, b_ub and b_eq (`with_parameters`)
        change. A certificate: n + k n multiplications for k basic variables.

    Transforms:
        none by itself; gradients come from a rule, see `difflayers.SolverLayer`.

    Example:
        >>> import torch, difflayers as dl
        >>> program = dl.oracles.LinearProgram(A_ub=[[1.0, 2.0]], b_ub=[4.0], bounds=(0, 3))
        >>> program.solve(torch.tensor([[-1.0, -1.0], [1.0, -1.0]]))
        tensor([[3.0000, 0.5000],
                [0.0000, 2.0000]])
    """

    name = "difflayers.oracles.LinearProgram"
    releases_gil = True

    def __init__(
        self,
        A_ub: Any = None,
        b_ub: Any = None,
        A_eq: Any = None,
        b_eq: Any = None,
        bounds: Any = (0, None),
        *,
        n: int | None = None,
        method: str = "glop",
        certificates: int = 0,
        warm_starts: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if n is not None:
            n = _checks.integer(self.name, "n", n, minimum=0)
        self.constraints = LinearConstraints(self.name, A_ub, b_ub, A_eq, b_eq, bounds, n)
        self.method = _checks.choice(self.name, "method", method, METHODS)
        self.exact = self.method != "pdlp"
        self._models = PerThread()
        self._certificates = Certificates(_checks.integer(self.name, "certificates", certificates, minimum=0))
        if certificates and self.method != "glop":
            raise ValueError(
                f"{self.name}: argument 'certificates' must be 0 with method={method!r}, got {certificates}; only "
                f"method='glop' tells the multipliers that they need"
            )

        self.warm_starts = _checks.integer(self.name, "warm_starts", warm_starts, minimum=0)
        if warm_starts and self.method != "pdlp":
            raise ValueError(
                f"{self.name}: argument 'warm_starts' must be 0 with method={method!r}, got {warm_starts}; only "
                f"method='pdlp' can start from a solution"
            )
        self.releases_gil = warm_starts == 0

    @property
    def certified(self) -> int:
        """How many rows certificates have answered so far in this process."""
        return self._certificates.hits

    @property
    def cost_shape(self) -> tuple[int, ...]:
        """(n,)."""
        return (self.constraints.n,)

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """b_ub and b_eq, in the shapes they were given."""
        return self.constraints.parameter_shapes

    def _solve_rows(self, costs: np.ndarray, instances: list[Instance], time_limit: float | None) -> list[Row]:
        memory = self._certificates
        if memory.size == 0 or self.constraints.n == 0:
            return super()._solve_rows(costs, instances, time_limit)
        keys, scaled = [instance_key(instance) for instance in instances], normalised_rows(costs)
        solutions = memory.find(scaled, keys)
        rows = [None if x is None else Row(x, Status.OPTIMAL) for x in solutions]
        for i in range(len(rows)):
            if rows[i] is not None:
                continue
            rows[i] = row = super()._solve_rows(costs[i : i + 1], instances[i : i + 1], time_limit)[0]
            if row.solution is None or not memory.worthwhile(keys[i], row.solution):
                continue
            certificate = self._certificate(row, instances[i])
            if certificate is None or not certificate.proves(scaled[i : i + 1]).all():
                continue
            memory.add(keys[i], certificate)
            alike = [j for j in range(i + 1, len(rows)) if rows[j] is None and keys[j] == keys[i]]
            proved = [j for j, good in zip(alike, certificate.proves(scaled[alike]), strict=True) if good]
            for j in proved:
                rows[j] = Row(certificate.solution, Status.OPTIMAL)
            memory.count(len(proved))
        return [row for row in rows if row is not None]

    def _certificate(self, row: Row, instance: Instance) -> Certificate | None:
        """The basis of the row that this thread has just solved."""
        if row.status != Status.OPTIMAL or row.solution is None:
            return None
        solver = self._model(self.method).solver
        multipliers, reduced = np.array(solver.dual_values()), np.array(solver.reduced_costs())
        return certificate_of(self.constraints, self.constraints.sides(instance)[1], row.solution, multipliers, reduced)

    def _model(self, method: str) -> Any:
        if method == "pdlp" and self.warm_starts:
            return self._models.get("warm", lambda: WarmStarted(self.constraints, self.warm_starts))
        return self._models.get(method, lambda: _Model(method, self.constraints))

    def _solve_row(self, cost: np.ndarray, instance: Instance, deadline: float | None) -> Row:
        problem = self.constraints
        if (problem.lower > problem.upper).any():
            return Row(None, Status.INFEASIBLE, reason="a lower bound is above its upper bound")
        if problem.n == 0:
            holds = problem.hold(np.zeros(0), instance)
            return Row(np.zeros(0), Status.OPTIMAL) if holds else Row(None, Status.INFEASIBLE)
        model = self._model(self.method)
        low, high = problem.sides(instance)
        found = model.minimise(cost, low, high, deadline)
        if self.method == "pdlp" and found.values is None and found.status != Status.TIMEOUT:
            # a first-order method often proves nothing about a program without solution; the simplex method does
            model = self._model("glop")
            found = model.minimise(cost, low, high, deadline)
        if found.status == Status.INFEASIBLE and cost.any():
            # solvers mix up infeasible and unbounded, and feasibility does not depend on the costs
            feasible = model.minimise(np.zeros(problem.n), low, high, deadline)
            found = Outcome(Status.UNBOUNDED, None, -math.inf) if feasible.values is not None else feasible
        if found.values is None:
            return Row(None, found.status, reason=found.reason)
        solution = np.clip(found.values, problem.lower, problem.upper) + 0.0  # + 0.0: no negative zeros
        status = found.status if self.exact else Status.FEASIBLE
        return Row(solution, status, found.bound)

    def _is_feasible(self, solution: np.ndarray, instance: Instance) -> bool:
        return self.constraints.hold(solution, instance)


class _Model:
    """The program in OR-Tools' model builder: bulk changes by arrays, and a solver without state."""

    def __init__(self, method: str, problem: LinearConstraints) -> None:
        self.module = load("ortools.linear_solver.python.model_builder_helper")
        sparse = solver_module(LinearProgram.name, "scipy.sparse")
        self.low, self.high = problem.sides({})
        self.model = self.module.ModelBuilderHelper()
        self.model.fill_model_from_sparse_data(
            problem.lower, problem.upper, np.zeros(problem.n), self.low, self.high, sparse.csr_matrix(problem.matrix)
        )
        self.usable = True
        self.small = problem.n + len(self.low) <= 500
        self.columns = np.arange(problem.n).tolist()
        self.solver = self.module.ModelSolverHelper(method)
        self.solver.enable_output(False)
        if method == "highs":
            self.solver.set_solver_specific_parameters("output_flag=false")  # it prints its name all the same

    def minimise(self, cost: np.ndarray, low: np.ndarray, high: np.ndarray, deadline: float | None) -> Outcome:
        seconds = remaining(deadline)
        if seconds == 0.0:
            return Outcome(Status.TIMEOUT, None, -math.inf)
        for i in np.flatnonzero((low != self.low) | (high != self.high)).tolist():
            self.model.set_constraint_lower_bound(i, float(low[i]))
            self.model.set_constraint_upper_bound(i, float(high[i]))
        self.low, self.high = low, high
        scaled, _ = normalised(cost)
        self.model.clear_objective()  # the next line leaves coefficients as they were where the new ones are zero
        self.model.set_objective_coefficients(self.columns, scaled.tolist())
        self.solver.set_time_limit_in_seconds(LONG if seconds is None else seconds)
        if self.small:  # over before anyone presses Ctrl-C, and a thread takes as long
            self.solver.solve(self.model)
        else:
            self.usable = False  # until it is back: an interrupted solver stays interrupted
            interruptible(lambda: self.solver.solve(self.model), self.solver.interrupt_solve)
            self.usable = True
        status, kinds = self.solver.status(), self.module.SolveStatus
        if status in (kinds.OPTIMAL, kinds.FEASIBLE) and self.solver.has_solution():
            values = np.array(self.solver.variable_values(), dtype=np.float64)
            return Outcome(Status.OPTIMAL if status == kinds.OPTIMAL else Status.FEASIBLE, values, -math.inf)
        if status in (kinds.INFEASIBLE, kinds.UNBOUNDED):
            return Outcome(Status.INFEASIBLE, None, math.inf)
        if deadline is not None and remaining(deadline) == 0.0:
            return Outcome(Status.TIMEOUT, None, -math.inf)
        return Outcome(Status.FAILED, None, -math.inf, f"the solver stopped with {status.name}")
