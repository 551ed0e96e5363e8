"""diffcp row by row, as a solver that cvxpylayers can be given. Imported at first use, as it loads cvxpylayers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import diffcp
import numpy as np
import scipy.sparse
import torch
from cvxpy.reductions.solvers.conic_solvers.scs_conif import dims_to_solver_dict
from cvxpylayers.interfaces.base import SolverInterface
from torch import Tensor

from ..oracles import Status

# How far a solution may be from its optimality conditions, relative to their terms. Solvers that stop at 1e-4 pass;
# what is returned in place of a solution (a certificate of infeasibility) misses by about 1.
TOLERANCE = 1e-3

_DERIVATIVE_ONLY = ("mode", "n_jobs_backward", "derivative_kwargs")
_OTHERS = ("n_jobs_forward", "n_jobs_backward")


class Report:
    """What one call learns about its rows; passed through cvxpylayers among the solver's arguments."""

    def __init__(self, workers: int, backward: str) -> None:
        """Args: the number of threads; "raise" or not where a row's derivative fails."""
        self.workers, self.backward = workers, backward
        self.status: list[Status] = []
        self.reasons: list[str] = []
        self.problem: Exception | None = None  # of the backward pass

    def each(self, function: Callable[[int], Any], count: int) -> list[Any]:
        """The results for every row, on threads where wanted (the solvers let go of the interpreter's lock)."""
        if self.workers == 1 or count <= 1:
            return [function(i) for i in range(count)]
        with ThreadPoolExecutor(self.workers) as threads:
            return list(threads.map(function, range(count)))


class Conic(SolverInterface):
    """Solves each row by diffcp and checks what comes back; rows without a solution are NaN and have no gradient."""

    canon_solver = "DIFFCP"

    def __init__(self, context: Any) -> None:
        """Takes the structure of the conic program from cvxpylayers' own context of diffcp."""
        self.structure, self.shape = context.A_structure, context.A_shape
        self.right_hand_side, self.dims = context.b_idx, context.dims

    def solve_torch_batch(self, P: Any, q: Tensor, A: Tensor, dims: Any, solver_args: dict, needs_grad: bool) -> Any:
        """Primal and dual solutions, batch first, and what the derivative needs."""
        options = dict(solver_args)
        report: Report = options.pop("report")
        for name in _OTHERS if needs_grad else (*_DERIVATIVE_ONLY, *_OTHERS):
            options.pop(name, None)
        objectives, constraints = q.double().numpy(), A.double().numpy()

        def solve(i: int) -> tuple[Any, ...]:
            return self._solve(objectives[i], constraints[i], options, needs_grad)

        rows = report.each(solve, len(objectives))
        report.status, report.reasons = [row[2] for row in rows], [row[3] for row in rows]
        primal, dual = (torch.from_numpy(np.stack([row[k] for row in rows])) for k in (0, 1))
        return primal, dual, (report, [row[4] for row in rows])

    def derivative_torch_batch(self, dprimal: Tensor, ddual: Tensor, saved_state: Any) -> Any:
        """Gradients by q and A, batch first."""
        report, adjoints = saved_state
        of_primal, of_dual = dprimal.double().numpy(), ddual.double().numpy()
        entries, columns = len(self.structure[0]), self.shape[1]
        nothing = np.zeros(columns), np.zeros(entries)
        failed: list[tuple[int, str]] = []

        def derive(i: int) -> tuple[np.ndarray, np.ndarray]:
            adjoint, x, y = adjoints[i], of_primal[i], of_dual[i]
            if adjoint is None or not (x.any() or y.any()):
                return nothing
            if not (np.isfinite(x).all() and np.isfinite(y).all()):
                return np.full(columns, np.nan), np.full(entries, np.nan)
            try:
                by_matrix, by_right, by_cost = adjoint(x, y, np.zeros(len(y)))
            except diffcp.SolverError as error:  # the moved problem of LPGD
                failed.append((i, str(error)))
                return nothing
            return np.append(by_cost, 0.0), np.concatenate([-by_matrix.data, by_right[self.right_hand_side]])

        rows = report.each(derive, len(adjoints))
        if failed and report.backward == "raise":
            shown = ", ".join(str(i) for i, _ in sorted(failed)[:5])
            raise diffcp.SolverError(f"rows {shown}: {failed[0][1]}")
        return None, *(torch.from_numpy(np.stack([row[k] for row in rows])) for k in (0, 1))

    def _solve(self, objective: np.ndarray, constraint: np.ndarray, options: dict, needs_grad: bool) -> tuple[Any, ...]:
        both = scipy.sparse.csc_matrix((constraint, *self.structure), shape=self.shape)
        # diffcp takes zeros out of the matrix that it is given
        matrix, right, cost = -both[:, :-1], both[:, -1].toarray().flatten(), objective[:-1]
        cones, adjoint, reason = dims_to_solver_dict(self.dims), None, ""
        x = y = np.empty(0)
        try:
            if needs_grad:
                x, y, s, _, adjoint = diffcp.solve_and_derivative(matrix.copy(), right, cost, cones, **options)
            else:
                x, y, s = diffcp.solve_only(matrix.copy(), right, cost, cones, **options)
            status = judged(matrix, right, cost, x, y, s)
        except diffcp.SolverError as error:
            status, reason = read(str(error)), str(error)
        if status > Status.FEASIBLE:
            missing = np.full(len(cost), np.nan), np.full(len(right), np.nan)
            return *missing, status, reason, None
        return x, y, status, reason, adjoint


def judged(matrix: Any, right: np.ndarray, cost: np.ndarray, x: np.ndarray, y: np.ndarray, s: np.ndarray) -> Status:
    """What x, y, s are, whatever the solver says: diffcp hands on Clarabel's certificates as if they were solutions."""
    if not all(np.isfinite(part).all() for part in (x, y, s)):
        return Status.FAILED

    def size(*parts: np.ndarray) -> float:
        return max((np.abs(part).max() for part in parts if len(part)), default=0.0)

    primal, dual, low, high = matrix @ x, matrix.T @ y, cost @ x, right @ y
    off = size(primal + s - right) / (1.0 + size(primal, s, right)), size(dual + cost) / (1.0 + size(dual, cost))
    if max(*off, abs(low + high) / (1.0 + abs(low) + abs(high))) <= TOLERANCE:
        return Status.OPTIMAL
    if high < 0 and size(dual) <= TOLERANCE * -high:
        return Status.INFEASIBLE
    if low < 0 and size(primal + s) <= TOLERANCE * -low:
        return Status.UNBOUNDED
    return Status.FAILED


def read(message: str) -> Status:
    """The status in a solver's message."""
    message = message.lower()
    if "infeasible" in message and "dual" not in message:
        return Status.INFEASIBLE
    return Status.UNBOUNDED if "unbounded" in message or "infeasible" in message else Status.FAILED
