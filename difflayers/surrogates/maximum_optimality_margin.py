"""Maximum optimality margin: observed solutions of a linear program must be optimal, by a margin of reduced costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from ..errors import SolverError
from ._constraints import TIGHT, LinearConstraints, independent
from ._loss import DecisionLoss, checked_costs, companion, eager_or_raise, on_host

__all__ = ["MaximumOptimalityMargin"]

DEGENERATE = ("best", "complete")


class MaximumOptimalityMargin(DecisionLoss):
    r"""Learns costs from observed solutions of a linear program alone, with neither true costs nor an oracle.

    A vertex with basis B of the program in standard form, min $c^\top x$, A x = b, x >= 0, is optimal iff the reduced
    costs of the other columns N are not negative. The loss wants them to be at least a margin m:

    $$\ell(\hat c) = \sum_{j \in N} \left[m - r_j(\hat c)\right]_+, \qquad
    r_j(\hat c) = \hat c_j - \hat c_B^\top A_B^{-1} A_j.$$

    It is convex in $\hat c$ and zero iff the observed solution is optimal by that margin (which the scale of the costs
    can always reach: the margin sets their unit). The observed solution tells B where it is not degenerate, that is,
    has as many positive entries as A has independent rows. A degenerate one (a path, an assignment) has several bases,
    and need be optimal by one of them. With S its support, "best" takes the multipliers y that serve it best,

    $$\ell(\hat c) = \min_y \sum_{j \notin S} \left[m - (\hat c_j - A_j^\top y)\right]_+ \quad
    \text{subject to } A_S^\top y = \hat c_S,$$

    which is the loss above where B is unique, still convex, and zero iff some multipliers prove every column outside
    the support too dear by the margin, so that no other solution ties. Its dual says the same of moves z away from the
    solution, $\max_z \sum_{j \notin S} m z_j - \hat c^\top z$ subject to $A z = 0$ and $0 \le z_j \le 1$ outside S: a
    small linear program a row, whose solution is the negative subgradient. "complete" adds the first independent
    columns to S instead, with no program to be solved, but a loss that insists on this basis, be it optimal or not.
    Where true costs are known too, `bases` finds optimal ones once and for all.

    Args:
        A_ub, b_ub, A_eq, b_eq, bounds: the constraints, as scipy.optimize.linprog takes them: default bounds (0, None).
            Slack variables and shifts for the standard form are added; their costs are zero.
        cost_shape: if solutions are not vectors; their flattened entries are the columns of A.
        margin: m > 0.
        degenerate: "best" or "complete".
        reduction: "mean", "sum", or "none" (one loss a row).

    Returns:
        Of a call with `(predicted_costs, true_solutions, bases=None)`, both `[..., *cost_shape]`, and bases as the
        method `bases` returns them: the loss in the dtype of the predictions. Gradients flow to the predicted costs.

    Raises:
        TypeError: the costs are not floating-point tensors, the constraints not arrays.
        ValueError: NaN or infinite costs, solutions that are infeasible or not vertices, a variable without a lower
            bound, shapes that do not fit, settings out of range.
        SolverError: HiGHS gave up on a program.
        ImportError: SciPy is missing, where the loss needs it.

    Cost:
        O(m^3) a row for m constraints; "best" a linear program for each degenerate row (HiGHS in SciPy, many rows in
        one call; 0.3 ms a row on a 5x5 grid).

    Transforms:
        backward, DDP, checkpointing. torch.compile breaks the graph, and refuses with fullgraph=True; torch.func and
        torch.export raise UnsupportedOperationError.

    References:
        Sun, Liu, Li, "Maximum Optimality Margin: A Unified Approach for Contextual Linear Programming and Inverse
        Linear Programming", ICML 2023, arXiv 2301.11260, Section 3. The treatment of degenerate solutions is ours.

    Example:
        >>> import torch, difflayers as dl
        >>> loss = dl.surrogates.MaximumOptimalityMargin(A_eq=torch.ones(1, 3), b_eq=torch.ones(1))
        >>> predicted = torch.tensor([2.0, 1.5, 4.0], requires_grad=True)
        >>> value = loss(predicted, torch.tensor([1.0, 0.0, 0.0]))  # reduced costs -0.5 and 2
        >>> value.backward()
        >>> value.item(), predicted.grad
        (1.5, tensor([ 1., -1.,  0.]))
    """

    def __init__(
        self,
        *,
        A_ub: Any = None,
        b_ub: Any = None,
        A_eq: Any = None,
        b_eq: Any = None,
        bounds: Any = None,
        cost_shape: tuple[int, ...] | None = None,
        margin: float = 1.0,
        degenerate: str = "best",
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        self.margin = _checks.number(self.name, "margin", margin, above=0.0)
        self.degenerate = _checks.choice(self.name, "degenerate", degenerate, DEGENERATE)
        self._given = given = LinearConstraints(
            self.name, A_ub=A_ub, b_ub=b_ub, A_eq=A_eq, b_eq=b_eq, bounds=bounds, cost_shape=cost_shape
        )
        if not np.isfinite(given.lower).all():
            raise ValueError(
                f"{self.name}: argument 'bounds' must have a finite lower bound for every variable, got none for "
                f"variable {int(np.flatnonzero(~np.isfinite(given.lower))[0])}; split it into two that are >= 0"
            )
        # standard form: columns x - lower, b_ub - A_ub x, upper - x
        self._bounded = np.flatnonzero(np.isfinite(given.upper))
        slack, upper = len(given.b_ub), len(self._bounded)
        A = np.zeros((slack + len(given.b_eq) + upper, given.n + slack + upper))
        A[:slack, : given.n], A[:slack, given.n : given.n + slack] = given.A_ub, np.eye(slack)
        A[slack : slack + len(given.b_eq), : given.n] = given.A_eq
        A[slack + len(given.b_eq) :, given.n + slack :] = np.eye(upper)
        A[slack + len(given.b_eq) + np.arange(upper), self._bounded] = 1.0
        self._matrix = A[independent(A.T, len(A))]  # flows and assignments repeat a constraint
        self._completed: dict[bytes, np.ndarray] = {}

    @on_host
    def forward(self, predicted_costs: Tensor, true_solutions: Tensor, bases: Tensor | None = None) -> Tensor:
        """The loss of predicted costs."""
        eager_or_raise(self.name)
        predicted = checked_costs(self.name, "predicted_costs", predicted_costs, self._given.cost_shape)
        best = companion(self.name, "true_solutions", true_solutions, predicted)
        lead = predicted.shape[: predicted.dim() - len(self._given.cost_shape)]
        flat = predicted.reshape(lead.numel(), self._given.n)
        costs = torch.cat([flat, flat.new_zeros(len(flat), self._matrix.shape[1] - self._given.n)], 1)
        supports = self._supports(best)
        if bases is not None:
            rows = self._hinge(costs, self._checked_bases(bases, lead).to(costs.device))
        elif self.degenerate == "complete":
            rows = self._hinge(costs, self._complete(supports).to(costs.device))
        else:
            whole = torch.from_numpy(supports.sum(1) == len(self._matrix)).to(costs.device)
            rows = costs.new_zeros(len(costs))
            rows = rows.index_put((whole,), self._hinge(costs[whole], self._complete(supports[whole.cpu().numpy()])))
            rows = rows.index_put((~whole,), self._best(costs[~whole], supports[~whole.cpu().numpy()]))
        return self._reduce(rows.reshape(lead), predicted_costs.dtype)

    def bases(self, true_costs: Tensor, true_solutions: Tensor) -> Tensor:
        """Optimal bases of observed solutions at their true costs, to be kept and passed to the loss.

        Args:
            true_costs, true_solutions: `[..., *cost_shape]`.

        Returns:
            `[..., m]` int64: the columns of the standard form (the variables, then the slacks of A_ub, then those of
            the upper bounds). Where a solution is not optimal, a basis of least violation.
        """
        true = checked_costs(self.name, "true_costs", true_costs, self._given.cost_shape)
        supports = self._supports(companion(self.name, "true_solutions", true_solutions, true))
        costs = np.pad(self._given.on_host("true_costs", true), ((0, 0), (0, self._matrix.shape[1] - self._given.n)))
        y, _ = _multipliers(self._matrix, costs, supports, 0.0)
        reduced = (costs - y @ self._matrix).clip(min=0.0)
        found = [self._tight_basis(*row) for row in zip(supports, reduced, strict=True)]
        lead = true.shape[: true.dim() - len(self._given.cost_shape)]
        return torch.from_numpy(np.array(found, dtype=np.int64)).reshape(*lead, len(self._matrix))

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        return (
            f"n={self._given.n}, margin={self.margin:g}, degenerate={self.degenerate!r}, reduction={self.reduction!r}"
        )

    def _supports(self, solutions: Tensor) -> np.ndarray:
        """`[R, columns]`: which variables of the standard form are positive; raises where that is no vertex."""
        x = self._given.on_host("true_solutions", solutions)
        slack, above, below = self._given.slacks(x)
        scale = 1 + np.abs(x).max(1, initial=0.0, keepdims=True)
        supports = np.concatenate([above, slack, below[:, self._bounded]], 1) > TIGHT * scale
        for i, support in enumerate(supports):
            if support.tobytes() in self._completed:
                continue
            basis = self._completion(support)
            if not np.isin(np.flatnonzero(support), basis).all():
                raise ValueError(
                    f"{self.name}: argument 'true_solutions' must be vertices, got one that is not in row {i}: its "
                    f"{int(support.sum())} positive variables have dependent columns"
                )
            if len(self._completed) < 100_000:
                self._completed[support.tobytes()] = basis
        return supports

    def _completion(self, support: np.ndarray) -> np.ndarray:
        """The support, then the first independent columns."""
        order = np.argsort(~support, kind="stable")
        return order[independent(self._matrix[:, order], len(self._matrix))]

    def _tight_basis(self, support: np.ndarray, reduced: np.ndarray) -> list[int]:
        """A basis that keeps reduced costs from becoming negative: support, columns of reduced cost 0, ratio tests."""
        A, slack = self._matrix, np.where(support, 0.0, reduced)
        order = np.lexsort((slack, ~support))
        tight = order[slack[order] <= 1e-9 * (1 + slack.max(initial=0.0))]
        basis = tight[independent(A[:, tight], len(A))].tolist()
        while len(basis) < len(
            A
        ):  # the multipliers were no vertex: move them, the basis stays tight, to the next column
            move = A.T @ np.linalg.svd(A[:, basis].T)[2][-1]
            move = move if move.max() > -move.min() else -move
            meets = move > 1e-9 * np.abs(move).max()
            meets[basis] = False
            steps = np.where(meets, slack / np.where(meets, move, 1.0), np.inf)
            slack = (slack - steps.min() * move).clip(min=0.0)
            basis.append(int(steps.argmin()))
        return basis

    def _complete(self, supports: np.ndarray) -> Tensor:
        bases = [self._completed.get(support.tobytes()) for support in supports]
        filled = [
            self._completion(support) if basis is None else basis
            for support, basis in zip(supports, bases, strict=True)
        ]
        return torch.from_numpy(np.array(filled, dtype=np.int64).reshape(len(supports), len(self._matrix)))

    def _checked_bases(self, bases: Tensor, lead: torch.Size) -> Tensor:
        shape = (*lead, len(self._matrix))
        if not isinstance(bases, Tensor) or bases.dtype != torch.int64 or bases.shape != shape:
            got = f"{bases.dtype} {tuple(bases.shape)}" if isinstance(bases, Tensor) else type(bases).__name__
            raise ValueError(f"{self.name}: argument 'bases' must be int64 of shape {shape}, got {got}; use .bases()")
        return bases.reshape(lead.numel(), len(self._matrix))

    def _hinge(self, costs: Tensor, bases: Tensor) -> Tensor:
        """The loss of rows with known bases."""
        A = torch.from_numpy(self._matrix).to(costs)
        bases = bases.to(costs.device)
        transposed = A.T[bases]  # shape: [R, m, m], the transposes of A_B
        y = torch.linalg.solve(transposed, costs.gather(1, bases).unsqueeze(-1)).squeeze(-1)
        short = (self.margin - (costs - y @ A)).clamp(min=0.0)
        return short.scatter(1, bases, 0.0).sum(1)  # the basic ones have a reduced cost of 0

    def _best(self, costs: Tensor, supports: np.ndarray) -> Tensor:
        """The loss of degenerate rows."""
        given = self._given.on_host("predicted_costs", costs[:, : self._given.n])
        host = np.pad(given, ((0, 0), (0, costs.shape[1] - self._given.n)))  # slacks cost nothing
        _, moves = _multipliers(self._matrix, host, supports, self.margin)
        gain = torch.from_numpy(self.margin * (moves * ~supports).sum(1)).to(costs)
        return gain - (torch.from_numpy(moves).to(costs) * costs).sum(1)


def _multipliers(
    A: np.ndarray, costs: np.ndarray, supports: np.ndarray, margin: float
) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers `[R, m]` of least hinge with A_S' y = c_S, and the moves z `[R, columns]` that are dual to them.

    The dual of the hinge's program is max (m 1_N - c)' z over A z = 0, 0 <= z_N <= 1, z_S free: the best of the
    directions in which one can leave the solution. It has fewer rows, and -z is the subgradient.
    """
    try:
        from scipy.optimize import linprog
        from scipy.sparse import csc_array, eye_array, kron
    except ImportError as error:
        raise ImportError(
            "difflayers.losses.MaximumOptimalityMargin needs SciPy for degenerate solutions: "
            "pip install 'difflayers[solvers]'"
        ) from error
    m, columns = A.shape
    multipliers, moves = np.zeros((len(costs), m)), np.zeros(costs.shape)
    # many rows as one program: linprog's own overhead is larger than the solution of a small one
    chunk = max(1, 4000 // columns)
    for start in range(0, len(costs), chunk):
        rows = slice(start, start + chunk)
        support, size = supports[rows], len(costs[rows])
        low, high = np.where(support, -np.inf, 0.0), np.where(support, np.inf, 1.0)
        result = linprog(
            (costs[rows] - margin * ~support).ravel(),
            A_eq=kron(eye_array(size), csc_array(A), format="csc"),
            b_eq=np.zeros(size * m),
            bounds=np.stack([low.ravel(), high.ravel()], 1),
            method="highs-ds",  # simplex: a vertex, whose zero reduced costs make a basis
        )
        if result.status != 0:
            raise SolverError(
                f"difflayers.losses.MaximumOptimalityMargin: HiGHS found no multipliers: {result.message}"
            )
        multipliers[rows], moves[rows] = result.eqlin.marginals.reshape(size, m), result.x.reshape(size, columns)
    return multipliers, moves
