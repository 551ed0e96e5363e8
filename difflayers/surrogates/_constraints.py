"""Linear constraints in the vocabulary of scipy.optimize.linprog, for losses that look at them and need no oracle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _checks

TIGHT = 1e-6  # relative slack below which a constraint counts as binding: solvers' feasibility tolerance


class LinearConstraints:
    """A_ub x <= b_ub, A_eq x = b_eq, lower <= x <= upper, over solutions of cost_shape, flattened.

    Attributes:
        A_ub, b_ub, A_eq, b_eq: float64 arrays, of no rows where not given.
        lower, upper: `[n]`, infinite where there is no bound.
    """

    def __init__(
        self, function: str, *, A_ub: Any, b_ub: Any, A_eq: Any, b_eq: Any, bounds: Any, cost_shape: Any
    ) -> None:
        self.function = function
        self.cost_shape = self._shape(cost_shape, A_ub, A_eq, bounds)
        self.n = math.prod(self.cost_shape)
        self.A_ub, self.b_ub = self._rows("ub", A_ub, b_ub)
        self.A_eq, self.b_eq = self._rows("eq", A_eq, b_eq)
        self.lower, self.upper = self._bounds(bounds)

    def _shape(self, cost_shape: Any, A_ub: Any, A_eq: Any, bounds: Any) -> tuple[int, ...]:
        if cost_shape is not None:
            return tuple(_checks.integer(self.function, "cost_shape", size, minimum=1) for size in cost_shape)
        for name, matrix in (("A_ub", A_ub), ("A_eq", A_eq)):
            if matrix is not None:
                return (self._array(name, matrix, 2).shape[1],)
        if bounds is not None and np.ndim(bounds) == 2:
            return (len(bounds),)
        raise ValueError(f"{self.function}: pass constraints, A_ub or A_eq, or cost_shape, got none of them")

    def _array(self, name: str, value: Any, dimensions: int) -> np.ndarray:
        if hasattr(value, "toarray"):  # scipy.sparse
            value = value.toarray()
        try:
            array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
        except (TypeError, ValueError):
            raise TypeError(
                f"{self.function}: argument '{name}' must be an array of numbers, got {type(value).__name__}"
            ) from None
        if array.ndim != dimensions or not np.isfinite(array).all():
            raise ValueError(
                f"{self.function}: argument '{name}' must be a finite array of {dimensions} dimensions, "
                f"got shape {array.shape}{'' if np.isfinite(array).all() else ' with NaN or infinity'}"
            )
        return array

    def _rows(self, kind: str, A: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
        if (A is None) != (b is None):
            raise ValueError(f"{self.function}: pass both A_{kind} and b_{kind} or neither, got one of them")
        if A is None:
            return np.zeros((0, self.n)), np.zeros(0)
        matrix, right = self._array(f"A_{kind}", A, 2), self._array(f"b_{kind}", b, 1)
        if matrix.shape != (len(right), self.n):
            raise ValueError(
                f"{self.function}: argument 'A_{kind}' must have shape {(len(right), self.n)}, a row for every entry "
                f"of b_{kind} and a column for every cost, got {matrix.shape}"
            )
        return matrix, right

    def _bounds(self, bounds: Any) -> tuple[np.ndarray, np.ndarray]:
        pairs = [bounds] * self.n if bounds is None or np.ndim(bounds) == 1 else list(bounds)
        pairs = [(0.0, None) if pair is None else tuple(pair) for pair in pairs]  # linprog's default
        if len(pairs) != self.n or any(len(pair) != 2 for pair in pairs):
            raise ValueError(
                f"{self.function}: argument 'bounds' must be a pair (lower, upper) or {self.n} of them, got {bounds!r}"
            )
        lower = np.array([-np.inf if low is None else float(low) for low, _ in pairs])
        upper = np.array([np.inf if high is None else float(high) for _, high in pairs])
        if not (lower <= upper).all():  # NaN too
            raise ValueError(f"{self.function}: argument 'bounds' must have lower <= upper, got {bounds!r}")
        return lower, upper

    def slacks(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For solutions `[R, n]`: b_ub - A_ub x, x - lower, upper - x; raises for one that is not feasible."""
        slack, above, below = self.b_ub - x @ self.A_ub.T, x - self.lower, self.upper - x
        scale = 1 + np.abs(x).max(1, initial=0.0)
        broken = np.concatenate([slack, above, below, -np.abs(x @ self.A_eq.T - self.b_eq)], 1).min(1) < -1e-4 * scale
        if broken.any():
            rows = np.flatnonzero(broken).tolist()
            raise ValueError(
                f"{self.function}: argument 'true_solutions' must satisfy the constraints, "
                f"got rows that do not: {rows[:5]}{', ...' if len(rows) > 5 else ''}"
            )
        return slack, above, below

    def on_host(self, name: str, values: Tensor) -> np.ndarray:
        """`[..., *cost_shape]` -> float64 `[R, n]`, finite whatever the device was: solvers come next."""
        flat = values.detach().to(device="cpu", dtype=torch.float64)
        if not bool(flat.isfinite().all()):
            raise ValueError(
                f"{self.function}: argument '{name}' must be finite, got NaN or infinity; "
                f"look for where {name} first is not with torch.isfinite"
            )
        return flat.reshape(flat.numel() // self.n, self.n).numpy()


def independent(columns: np.ndarray, limit: int) -> list[int]:
    """Indices of the first columns that are linearly independent, at most `limit` of them."""
    chosen: list[int] = []
    directions = np.zeros((0, columns.shape[0]))
    for j, column in enumerate(columns.T):
        if len(chosen) == limit:
            break
        rest = column - directions.T @ (directions @ column)
        rest = rest - directions.T @ (directions @ rest)  # once more: one pass of Gram-Schmidt is not accurate
        length = np.linalg.norm(rest)
        if length > 1e-9 * max(1.0, float(np.linalg.norm(column))):
            chosen.append(j)
            directions = np.vstack([directions, rest / length])
    return chosen
