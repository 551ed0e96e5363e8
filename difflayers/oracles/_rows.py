"""The constraints of linear and integer programs: arguments of scipy.optimize.linprog, checked."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from ._ortools import array, solver_module
from .base import Instance

TOLERANCE = 1e-6  # of the solvers, relative to the size of the terms of a row


class LinearConstraints:
    """A_ub x <= b_ub, A_eq x = b_eq, lower <= x <= upper.

    Args:
        name: in messages.
        A_ub: (rows, n), or None.
        b_ub: (rows,), or None.
        A_eq: (rows, n), or None.
        b_eq: (rows,), or None.
        bounds: (lower, upper) for every variable, or a sequence of n of them; None or an infinity where there is none.
        n: number of variables; needed where no matrix says it.
    """

    def __init__(self, name: str, A_ub: Any, b_ub: Any, A_eq: Any, b_eq: Any, bounds: Any, n: int | None) -> None:
        self.name = name
        given = {"A_ub": _matrix(name, "A_ub", A_ub), "A_eq": _matrix(name, "A_eq", A_eq)}
        widths = {what: matrix.shape[1] for what, matrix in given.items() if matrix is not None}
        if n is not None:
            widths["n"] = n
        if not widths and _is_sequence_of_pairs(bounds):
            widths["bounds"] = len(bounds)
        if len(set(widths.values())) != 1:
            raise ValueError(
                f"{name}: the number of variables must follow from A_ub, A_eq, a sequence of bounds or n, and be the "
                f"same, got {widths or 'none of them'}"
            )
        self.n = next(iter(widths.values()))
        self.A_ub, self.b_ub = self._part("ub", given["A_ub"], b_ub)
        self.A_eq, self.b_eq = self._part("eq", given["A_eq"], b_eq)
        self.lower, self.upper = self._bounds(bounds)
        self.matrix = _stack(self.A_ub, self.A_eq)
        self.magnitudes = abs(self.matrix)

    def _part(self, kind: str, matrix: Any, right: Any) -> tuple[Any, np.ndarray]:
        if (matrix is None) != (right is None):
            missing, there = ("b", "A") if right is None else ("A", "b")
            raise ValueError(f"{self.name}: argument '{missing}_{kind}' is missing, '{there}_{kind}' was given")
        if matrix is None:
            return np.zeros((0, self.n)), np.zeros(0)
        values = array(self.name, f"b_{kind}", right).astype(np.float64)
        if values.shape != matrix.shape[:1]:
            raise ValueError(
                f"{self.name}: argument 'b_{kind}' must have shape {matrix.shape[:1]}, one for each row of A_{kind}, "
                f"got {values.shape}"
            )
        return matrix, values

    def _bounds(self, bounds: Any) -> tuple[np.ndarray, np.ndarray]:
        pairs = bounds if _is_sequence_of_pairs(bounds) else [bounds] * self.n
        try:
            edges = [
                (-np.inf if low is None else float(low), np.inf if high is None else float(high)) for low, high in pairs
            ]
        except (TypeError, ValueError):
            raise ValueError(
                f"{self.name}: argument 'bounds' must be (lower, upper) or a sequence of such pairs, numbers or None, "
                f"got {bounds!r}"
            ) from None
        table = np.array(edges, dtype=np.float64).reshape(-1, 2)
        if len(table) != self.n:
            raise ValueError(
                f"{self.name}: argument 'bounds' must have one pair for each of {self.n} variables, got {len(table)}"
            )
        if np.isnan(table).any() or (table[:, 0] == np.inf).any() or (table[:, 1] == -np.inf).any():
            raise ValueError(f"{self.name}: argument 'bounds' must not be NaN, nor a lower bound inf or an upper -inf")
        return table[:, 0].copy(), table[:, 1].copy()

    def sides(self, instance: Instance) -> tuple[np.ndarray, np.ndarray]:
        """The lower and upper bounds of the rows of `matrix`."""
        b_ub = np.asarray(instance.get("b_ub", self.b_ub), dtype=np.float64)
        b_eq = np.asarray(instance.get("b_eq", self.b_eq), dtype=np.float64)
        low = np.concatenate([np.full(len(b_ub), -np.inf), b_eq])
        return low, np.concatenate([b_ub, b_eq])

    @cached_property
    def independent_equations(self) -> np.ndarray:
        """Which rows of A_eq, bool, say all that they say together: flows and assignments repeat one."""
        dense = self.A_eq if isinstance(self.A_eq, np.ndarray) else self.A_eq.toarray()
        lengths = np.linalg.norm(dense, axis=1)
        keep = np.zeros(len(dense), dtype=bool)
        if lengths.any():
            qr = solver_module(self.name, "scipy.linalg").qr
            triangle, order = qr((dense / np.where(lengths > 0, lengths, 1.0)[:, None]).T, mode="r", pivoting=True)
            keep[order[: int((np.abs(np.diagonal(triangle)) > 1e-9).sum())]] = True
        return keep

    def hold(self, x: np.ndarray, instance: Instance) -> bool:
        """Whether x satisfies them within the solvers' tolerance."""
        if not np.isfinite(x).all():
            return False
        low, high = self.sides(instance)
        value = self.matrix @ x
        slack = 10 * TOLERANCE * (1.0 + self.magnitudes @ np.abs(x))
        inside = (value >= low - slack).all() and (value <= high + slack).all()
        room = 10 * TOLERANCE * (1.0 + np.abs(x))
        return bool(inside and (x >= self.lower - room).all() and (x <= self.upper + room).all())

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """b_ub and b_eq."""
        return {"b_ub": self.b_ub.shape, "b_eq": self.b_eq.shape}


def _matrix(name: str, what: str, value: Any) -> Any:
    """A float64 matrix, dense or of scipy.sparse as it came; None stays."""
    if value is None:
        return None
    if hasattr(value, "tocsr"):  # of scipy.sparse
        matrix = value.tocsr().astype(np.float64)
        array(name, what, matrix.data)
    else:
        matrix = array(name, what, value).astype(np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"{name}: argument '{what}' must have shape (rows, n), got {matrix.shape}")
    return matrix


def _stack(above: Any, below: Any) -> Any:
    if isinstance(above, np.ndarray) and isinstance(below, np.ndarray):
        return np.concatenate([above, below])
    from scipy.sparse import csr_matrix, vstack  # there, as one of them is of it

    return csr_matrix(vstack([csr_matrix(above), csr_matrix(below)]))


def _is_sequence_of_pairs(bounds: Any) -> bool:
    if isinstance(bounds, (np.ndarray, Tensor)):
        return bounds.ndim == 2
    return isinstance(bounds, (list, tuple)) and all(isinstance(pair, (list, tuple, np.ndarray)) for pair in bounds)
