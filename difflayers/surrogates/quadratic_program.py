"""A linear program with a diagonal quadratic term, which makes its solution differentiable; solved by PDLP."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import _checks
from ..errors import InfeasibleError, SolverError, SolverTimeout, UnsupportedOperationError
from ..oracles import Status
from ..oracles.base import ON_FAILURE
from ..rules.base import Incoming, over_row

__all__ = ["QuadraticProgram"]

NAME = "difflayers.surrogates.QuadraticProgram"
# Distances below this (relative to 1 plus the bound) count as zero when the gradient asks what is at its bound.
AT_BOUND = 1e-6


class QuadraticProgram(nn.Module):
    r"""The minimiser of a linear cost and a diagonal quadratic term over a polyhedron, differentiable by the costs.

    $$ x(c) = \operatorname*{argmin}_x c \cdot x + \tfrac12 \sum_i \mu_i x_i^2, \qquad
       A_{ub} x \le b_{ub}, \quad A_{eq} x = b_{eq}, \quad l \le x \le u $$

    With a small mu it is a smoothed linear program ("QPTL"): the solution is a mixture of the program's vertices,
    continuous in c. Its gradient is that of the equality-constrained problem given by what is at its bound: for linear
    programs whose matrix is known this is `difflayers.rules.FrankWolfe` without an oracle, and much faster than a
    general convex layer.

    Args:
        quadratic: mu, a positive number or n of them.
        A_ub, b_ub, A_eq, b_eq, bounds: as of `scipy.optimize.linprog` (arrays or SciPy's sparse matrices; the default
            bounds are (0, None) for every variable). They give n unless mu does.
        tolerance: of PDLP, relative and absolute.
        time_limit: seconds for one row; None = no limit.
        warm_start: starts every row at the previous solution of its place in the batch: far fewer iterations while the
            costs change little. Results then depend on earlier calls, within the tolerance.
        on_failure: "raise" (once all rows are solved; the exception carries rows, status and solutions), "nan" (such
            rows are NaN), or "previous" (the last solution for the same place in a batch of as many rows; NaN when
            there is none). Such rows pass no gradient.

    Returns:
        Of a call with costs `[..., n]`: solutions of that shape and dtype; computed in float64 on the host.

    Raises:
        ImportError: OR-Tools is not installed.
        TypeError, ValueError: arguments that do not fit; NaN or infinity in the costs.
        InfeasibleError, SolverTimeout, SolverError: rows without a solution, with on_failure="raise".
        UnsupportedOperationError: under torch.func, torch.compile(fullgraph=True), torch.export.

    Cost:
        Forward, PDLP's iterations, each O(non-zeros of A). Backward, a sparse least-squares problem a row.

    Transforms:
        backward; DDP, checkpointing. torch.compile breaks the graph. The second derivative raises.

    References:
        Wilder, Dilkina, Tambe, "Melding the Data-Decisions Pipeline: Decision-Focused Learning for Combinatorial
        Optimization", AAAI 2019, arXiv 1809.05504, section 4; PDLP: Applegate et al., NeurIPS 2021, arXiv 2106.04756.

    Example:
        >>> import torch, difflayers as dl
        >>> layer = dl.surrogates.QuadraticProgram(1.0, A_eq=[[1.0, 1.0, 1.0]], b_eq=[1.0])
        >>> layer(torch.tensor([1.0, 1.5, 4.0])).round(decimals=5)
        tensor([0.7500, 0.2500, 0.0000])
    """

    def __init__(
        self,
        quadratic: Any,
        A_ub: Any = None,
        b_ub: Any = None,
        A_eq: Any = None,
        b_eq: Any = None,
        bounds: Any = (0, None),
        *,
        tolerance: float = 1e-9,
        time_limit: float | None = None,
        warm_start: bool = False,
        on_failure: str = "raise",
    ) -> None:
        super().__init__()
        self.tolerance = _checks.number(NAME, "tolerance", tolerance, above=0.0)
        self.time_limit = None if time_limit is None else _checks.number(NAME, "time_limit", time_limit, above=0.0)
        self.warm_start = _checks.boolean(NAME, "warm_start", warm_start)
        self.on_failure = _checks.choice(NAME, "on_failure", on_failure, ON_FAILURE)
        sizes = [np.shape(A)[1] for A in (A_ub, A_eq) if A is not None and len(np.shape(A)) == 2]
        mu = np.asarray(quadratic, dtype=np.float64)
        n = sizes[0] if sizes else (len(mu) if mu.ndim else np.shape(bounds)[0] if np.ndim(bounds) == 2 else 0)
        if n == 0 or any(size != n for size in sizes) or mu.shape not in ((), (n,)):
            raise ValueError(f"{NAME}: A_ub, A_eq and 'quadratic' must agree on n, got {sizes} and {mu.shape}")
        if not (np.isfinite(mu).all() and (mu > 0).all()):
            raise ValueError(f"{NAME}: argument 'quadratic' must be positive and finite, got {quadratic}")
        self.n, self.quadratic = n, np.broadcast_to(mu, (n,)).copy()
        try:
            import scipy.sparse
        except ImportError as error:
            raise ImportError(f"{NAME} needs SciPy; pip install 'difflayers[solvers]' ({error})") from error
        blocks = [_block("A_ub", A_ub, "b_ub", b_ub, n), _block("A_eq", A_eq, "b_eq", b_eq, n)]
        self.matrix = scipy.sparse.csc_matrix(scipy.sparse.vstack([matrix for matrix, _ in blocks]))
        self.upper = np.concatenate([right for _, right in blocks])
        self.lower = np.concatenate([np.full(len(blocks[0][1]), -np.inf), blocks[1][1]])
        self.low, self.high = _bounds(bounds, n)
        self._started: list[Any] = []
        self._previous = np.zeros((0, n))

    def forward(self, costs: Tensor) -> Tensor:
        """The solutions; see the class."""
        if torch.compiler.is_dynamo_compiling():
            from .._untraced import call

            return call(self.forward, costs)
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            raise UnsupportedOperationError(
                f"{NAME}: a solver runs on the host and cannot be traced by torch.compile(fullgraph=True), "
                f"torch.export or torch.func; call it outside of them"
            )
        costs = _checks.tensor(NAME, "costs", costs)
        if costs.dim() < 1 or costs.shape[-1] != self.n:
            raise ValueError(f"{NAME}: argument 'costs' must have shape [..., {self.n}], got {tuple(costs.shape)}")
        if not bool(costs.detach().isfinite().all()):
            bad = (~costs.detach().isfinite()).any(-1).flatten().nonzero().flatten().tolist()
            raise ValueError(f"{NAME}: argument 'costs' must be finite, got NaN or infinity in rows {bad[:5]}")
        return _QuadraticProgram.apply(costs, self)  # pyright: ignore[reportReturnType]

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        return (
            f"n={self.n}, constraints={len(self.upper)}, tolerance={self.tolerance:g}, on_failure={self.on_failure!r}"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_started": [], "_previous": np.zeros((0, self.n))}

    def solve_rows(self, costs: np.ndarray) -> tuple[np.ndarray, list[Status]]:
        """Solutions (NaN where there is none) and status of every row of costs (B, n)."""
        pdlp, parameters = _load(self.tolerance, self.time_limit)
        program = pdlp.QuadraticProgram()
        program.resize_and_initialize(self.n, len(self.upper))
        program.constraint_matrix = self.matrix
        program.constraint_lower_bounds, program.constraint_upper_bounds = self.lower, self.upper
        program.variable_lower_bounds, program.variable_upper_bounds = self.low, self.high
        program.set_objective_matrix_diagonal(self.quadratic)
        starts = self._started if self.warm_start and len(self._started) == len(costs) else [None] * len(costs)
        solutions, status, ends = np.full_like(costs, np.nan), [], []
        for i, cost in enumerate(costs):
            program.objective_vector = cost
            arguments = () if starts[i] is None else (starts[i],)
            result = pdlp.primal_dual_hybrid_gradient(program, parameters, *arguments)
            status.append(_status(result.solve_log.termination_reason))
            ends.append(None)
            if status[-1] == Status.OPTIMAL:
                solutions[i] = result.primal_solution
                end = ends[-1] = pdlp.PrimalAndDualSolution()
                end.primal_solution, end.dual_solution = result.primal_solution, result.dual_solution
        self._started = ends if self.warm_start else []
        return solutions, status

    def derivative(self, solution: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """The product of the Jacobian of one row's solution, which is symmetric, with a vector."""

        def touches(distance: np.ndarray, bound: np.ndarray) -> np.ndarray:
            return np.isfinite(bound) & (
                np.abs(distance) <= AT_BOUND * (1.0 + np.abs(np.where(np.isfinite(bound), bound, 0.0)))
            )

        free = ~(touches(solution - self.low, self.low) | touches(self.high - solution, self.high))
        tight = touches(self.upper - self.matrix @ solution, self.upper)
        result, scale = np.zeros(self.n), 1.0 / np.sqrt(self.quadratic[free])
        right = scale * gradient[free]
        if tight.any() and free.any():
            # what is left of the gradient outside of the span of the tight constraints
            transposed = (self.matrix[tight][:, free].multiply(scale)).T.tocsr()
            right = _outside(transposed, right)
        result[free] = -scale * right
        return result


class _QuadraticProgram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, costs: Tensor, layer: QuadraticProgram) -> Tensor:
        lead = costs.shape[:-1]
        rows = costs.detach().cpu().double().reshape(math.prod(lead), layer.n).numpy()
        solutions, status = layer.solve_rows(rows)
        ctx.layer, ctx.rows = layer, solutions
        if layer.on_failure == "previous":
            if layer._previous.shape == solutions.shape:
                solutions = np.where(np.isnan(solutions), layer._previous, solutions)
            layer._previous = solutions
        result = torch.from_numpy(solutions).reshape(costs.shape).to(costs.device, costs.dtype)
        failed = [i for i, state in enumerate(status) if state > Status.FEASIBLE]
        if failed and layer.on_failure == "raise":
            kinds = {status[i] for i in failed}
            kind = SolverError if Status.FAILED in kinds else InfeasibleError
            kind = SolverTimeout if Status.TIMEOUT in kinds else kind
            message = (
                f"{NAME}: {len(failed)} of {len(rows)} rows have no solution: rows {', '.join(map(str, failed[:5]))}, "
                f"the first is {status[failed[0]].name}; on_failure='nan' goes on without them"
            )
            raise kind(message, failed, torch.tensor([int(state) for state in status]).reshape(lead), result)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        layer, rows = ctx.layer, ctx.rows
        solved = torch.from_numpy(np.isfinite(rows)).reshape(gradient.shape).to(gradient.device)
        incoming = Incoming(gradient, over_row(solved, (-1,), "all"), (-1,))
        given = incoming.gradient.cpu().double().reshape(rows.shape).numpy()
        result = (
            np.stack([layer.derivative(x, g) if g.any() else 0.0 * g for x, g in zip(rows, given, strict=True)])
            if len(rows)
            else rows
        )
        back = torch.from_numpy(result).reshape(gradient.shape).to(gradient.device)
        return incoming.passed(back, gradient.dtype), None


def _outside(matrix: Any, right: np.ndarray) -> np.ndarray:
    """What is left of `right` after its projection onto the span of the matrix's columns."""
    from scipy.sparse.linalg import lsqr

    for _ in range(2):  # the second time takes out what the first leaves by its tolerance
        right = right - matrix @ lsqr(matrix, right, atol=1e-14, btol=1e-14, iter_lim=10 * sum(matrix.shape))[0]
    return right


def _block(matrix_name: str, matrix: Any, right_name: str, right: Any, n: int) -> tuple[Any, np.ndarray]:
    import scipy.sparse

    if (matrix is None) != (right is None):
        raise ValueError(f"{NAME}: arguments '{matrix_name}' and '{right_name}' must be given together, got one")
    if matrix is None:
        return scipy.sparse.csc_matrix((0, n)), np.zeros(0)
    block: Any = scipy.sparse.csc_matrix(matrix, dtype=np.float64)
    vector = np.asarray(right, dtype=np.float64)
    if vector.shape != (block.shape[0],):
        raise ValueError(
            f"{NAME}: argument '{right_name}' must have shape ({block.shape[0]},), one entry for each row of "
            f"{matrix_name}, got {vector.shape}"
        )
    if not (np.isfinite(block.data).all() and np.isfinite(vector).all()):
        raise ValueError(f"{NAME}: arguments '{matrix_name}' and '{right_name}' must be finite, got NaN or infinity")
    return block, vector


def _bounds(bounds: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    pairs = [bounds] * n if np.ndim(bounds) == 1 and len(bounds) == 2 and np.ndim(bounds[0]) == 0 else list(bounds)
    if len(pairs) != n or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{NAME}: argument 'bounds' must be a pair (least, most) or {n} of them, got {bounds}")
    low = np.array([-np.inf if least is None else least for least, _ in pairs], dtype=np.float64)
    high = np.array([np.inf if most is None else most for _, most in pairs], dtype=np.float64)
    if not (low <= high).all():
        raise ValueError(f"{NAME}: argument 'bounds' must have least <= most throughout, got {bounds}")
    return low, high


def _status(reason: int) -> Status:
    from ortools.pdlp import solve_log_pb2 as log

    names: dict[Any, Status] = {
        log.TERMINATION_REASON_OPTIMAL: Status.OPTIMAL,
        log.TERMINATION_REASON_PRIMAL_INFEASIBLE: Status.INFEASIBLE,
        log.TERMINATION_REASON_DUAL_INFEASIBLE: Status.UNBOUNDED,
        log.TERMINATION_REASON_TIME_LIMIT: Status.TIMEOUT,
    }
    return names.get(reason, Status.FAILED)


def _load(tolerance: float, time_limit: float | None) -> tuple[Any, Any]:
    """PDLP and its parameters."""
    try:
        from ortools.pdlp import solvers_pb2
        from ortools.pdlp.python import pdlp
    except ImportError as error:
        raise ImportError(f"{NAME} needs OR-Tools; pip install 'difflayers[solvers]' ({error})") from error
    parameters = solvers_pb2.PrimalDualHybridGradientParams()
    criteria = parameters.termination_criteria
    criteria.simple_optimality_criteria.eps_optimal_absolute = tolerance
    criteria.simple_optimality_criteria.eps_optimal_relative = tolerance
    criteria.iteration_limit = 10**6  # no row goes on for ever
    if time_limit is not None:
        criteria.time_sec_limit = time_limit
    return pdlp, parameters
