"""Maximum optimality margin: observed solutions of a linear program must be optimal, by a margin of reduced costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from ._constraints import TIGHT, LinearConstraints, independent
from ._loss import DecisionLoss, checked_costs, companion, eager_or_raise

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
    the support too dear by the margin, so that no other solution ties: a small linear program a row. "complete" adds
    the first independent columns to S instead, with no program to be solved, but a loss that insists on this basis, be
    it optimal or not. Where true costs are known too, `bases` finds optimal ones once and for all.

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
        ImportError: SciPy is missing, where the loss needs it.

    Cost:
        O(m^3) a row for m constraints; "best" a linear program (scipy, about a millisecond) for each degenerate row.

    Transforms:
        backward, DDP, checkpointing. torch.func, torch.compile(fullgraph=True) and torch.export raise
        UnsupportedOperationError.

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
        costs = np.pad(self._given.on_host(true), ((0, 0), (0, self._matrix.shape[1] - self._given.n)))
        found = np.empty((len(costs), len(self._matrix)), dtype=np.int64)
        for i, (cost, support) in enumerate(zip(costs, supports, strict=True)):
            reduced = cost
            if support.sum() < len(self._matrix):
                y = _multipliers(self._matrix, cost, support, 0.0)[0]
                reduced = np.abs(cost - y @ self._matrix)
            found[i] = self._completion(support, reduced)
        lead = true.shape[: true.dim() - len(self._given.cost_shape)]
        return torch.from_numpy(found).reshape(*lead, len(self._matrix))

    def _supports(self, solutions: Tensor) -> np.ndarray:
        """`[R, columns]`: which variables of the standard form are positive; raises where that is no vertex."""
        x = self._given.on_host(solutions)
        slack, above, below = self._given.slacks(x)
        scale = 1 + np.abs(x).max(1, initial=0.0, keepdims=True)
        supports = np.concatenate([above, slack, below[:, self._bounded]], 1) > TIGHT * scale
        for i, support in enumerate(supports):
            if support.tobytes() in self._completed:
                continue
            basis = self._completion(support, np.zeros(len(support)))
            if not np.isin(np.flatnonzero(support), basis).all():
                raise ValueError(
                    f"{self.name}: argument 'true_solutions' must be vertices, got one that is not in row {i}: its "
                    f"{int(support.sum())} positive variables have dependent columns"
                )
            if len(self._completed) < 100_000:
                self._completed[support.tobytes()] = basis
        return supports

    def _completion(self, support: np.ndarray, priority: np.ndarray) -> np.ndarray:
        """The support, then independent columns of least priority."""
        order = np.lexsort((priority, ~support))
        return order[independent(self._matrix[:, order], len(self._matrix))]

    def _complete(self, supports: np.ndarray) -> Tensor:
        bases = [self._completed.get(support.tobytes()) for support in supports]
        filled = [
            self._completion(support, np.zeros(len(support))) if basis is None else basis
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
        """The loss of degenerate rows: the value of a linear program, and its derivative by the right-hand sides."""
        values, slopes = np.zeros(len(costs)), np.zeros(costs.shape)
        host = costs.detach().to(device="cpu", dtype=torch.float64).numpy()
        for i, (cost, support) in enumerate(zip(host, supports, strict=True)):
            _, values[i], slopes[i] = _multipliers(self._matrix, cost, support, self.margin)
        value, slope = torch.from_numpy(values).to(costs), torch.from_numpy(slopes).to(costs)
        linear = (slope * costs).sum(1)
        return value + (linear - linear.detach())


def _multipliers(A: np.ndarray, cost: np.ndarray, support: np.ndarray, margin: float) -> tuple[Any, float, np.ndarray]:
    """Multipliers y of least hinge with A_S' y = c_S, that hinge, and its subgradient by the costs."""
    try:
        from scipy.optimize import linprog
    except ImportError as error:
        raise ImportError(
            "difflayers.losses.MaximumOptimalityMargin needs SciPy for degenerate solutions: "
            "pip install 'difflayers[solvers]'"
        ) from error
    m, rest = len(A), ~support
    count = int(rest.sum())
    result = linprog(  # variables: y, then what each reduced cost is short of the margin
        np.concatenate([np.zeros(m), np.ones(count)]),
        A_ub=np.hstack([A[:, rest].T, -np.eye(count)]),
        b_ub=cost[rest] - margin,
        A_eq=np.hstack([A[:, support].T, np.zeros((int(support.sum()), count))]),
        b_eq=cost[support],
        bounds=[(None, None)] * m + [(0, None)] * count,
        method="highs-ds",  # simplex: a vertex, whose zero reduced costs make a basis
    )
    if result.status != 0:
        raise ValueError(f"difflayers.losses.MaximumOptimalityMargin: no multipliers for a row: {result.message}")
    slope = np.zeros(len(cost))
    slope[rest], slope[support] = result.ineqlin.marginals, result.eqlin.marginals
    return result.x[:m], float(result.fun), slope
