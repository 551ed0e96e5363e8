"""The library's own exceptions, for solvers, surgery and what cannot be done."""

from __future__ import annotations

from typing import Any


class Error(Exception):
    """Base of the exceptions that are specific to difflayers."""


class UnsupportedOperationError(Error):
    """The operation exists but not in this mode; nothing wrong is returned in its place."""


class SolverError(Error):
    """Rows of a batch have no solution; raised after the whole batch was solved.

    Attributes:
        rows: the indices of those rows, in the batch flattened to one dimension.
        status: `difflayers.oracles.Status` of every row of the batch, int64, batch-shaped.
        solutions: the solutions of the batch; NaN in the rows that have none.
    """

    def __init__(self, message: str, rows: list[int] | None = None, status: Any = None, solutions: Any = None) -> None:
        super().__init__(message)
        self.rows, self.status, self.solutions = rows or [], status, solutions

    def __reduce__(self) -> Any:
        return type(self), (str(self), self.rows, self.status, self.solutions)


class InfeasibleError(SolverError):
    """Some row has no feasible solution, or an unbounded objective."""


class SolverTimeout(SolverError):
    """Some row had no feasible solution when its time was up."""


class DegenerateModelError(Error):
    """Some problem of a batch has no model; raised after the whole batch was tried.

    Attributes:
        rows: the indices of those problems, in the batch flattened to one dimension.
        result: the `difflayers.ransac.RansacResult` of the whole batch, with the `status` of every problem.
    """

    def __init__(self, message: str, rows: list[int] | None = None, result: Any = None) -> None:
        super().__init__(message)
        self.rows, self.result = rows or [], result

    def __reduce__(self) -> Any:
        return type(self), (str(self), self.rows, self.result)
