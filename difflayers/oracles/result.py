"""What an oracle returns."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from torch import Tensor


class Status(IntEnum):
    """How the solution of one row came out; up to FEASIBLE there is one."""

    OPTIMAL = 0
    FEASIBLE = 1  # not proved optimal: a heuristic, or the time was up
    INFEASIBLE = 2
    UNBOUNDED = 3
    TIMEOUT = 4  # no feasible solution in time
    FAILED = 5  # the solver raised, returned an infeasible solution, or its worker died


class OracleResult(NamedTuple):
    """The solutions of a batch.

    Attributes:
        solutions: `[..., *cost_shape]` in the dtype of the costs, no gradient; NaN in rows without a solution.
        objective: `[...]`, cost times solution.
        status: `[...]` int64 with the values of `Status`.
        bound: `[...]`, a lower bound of the optimum as far as the solver proves one (the objective itself where
            optimal, else -inf).
    """

    solutions: Tensor
    objective: Tensor
    status: Tensor
    bound: Tensor


class Row(NamedTuple):
    """The result of one row, as oracles compute it.

    Attributes:
        solution: float64 array of cost_shape, or None.
        status: of the row.
        bound: lower bound of the optimum; -inf if none. For OPTIMAL rows the objective is put in its place.
        reason: what went wrong, for the message.
    """

    solution: np.ndarray | None
    status: Status
    bound: float = -np.inf
    reason: str = ""
