"""The permutations of 1 ... n: the oracle behind ranking."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _checks
from .base import Instance, Oracle
from .result import Row, Status

__all__ = ["Permutation"]


class Permutation(Oracle):
    r"""The order of the ranks 1 ... n that is cheapest: the item of the highest cost gets rank 1.

    $$y(c) = \arg\min \{ c^\top y : y \text{ a permutation of } (1, \dots, n) \},$$

    that is, the ranks of -c: `solve(-scores)` are the ranks of the scores, 1 = smallest. Ties are ranked in the order
    in which they stand.

    Args:
        n: number of items.
        settings: on_failure, time_limit, workers, cache: see `difflayers.oracles.Oracle`.

    Returns:
        Of `solve` with costs `[..., n]`: ranks from 1, in that shape and dtype.

    Raises:
        TypeError, ValueError: n is not a non-negative integer.

    Cost:
        O(n log n) a row: one sort of the whole batch.

    Transforms:
        none by itself; gradients come from a rule, see `difflayers.SolverLayer`.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.oracles.Permutation(3).solve(torch.tensor([5.0, 1.0, 3.0]))
        tensor([1., 3., 2.])
    """

    name = "difflayers.oracles.Permutation"

    def __init__(self, n: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.n = _checks.integer(self.name, "n", n, minimum=0)

    @property
    def cost_shape(self) -> tuple[int, ...]:
        """(n,)."""
        return (self.n,)

    def _solve_rows(self, costs: np.ndarray, instances: list[Instance], time_limit: float | None) -> list[Row]:
        order = np.argsort(-costs, axis=1, kind="stable")
        ranks = np.empty(costs.shape)
        np.put_along_axis(ranks, order, np.broadcast_to(np.arange(1.0, self.n + 1), costs.shape), axis=1)
        return [Row(solution, Status.OPTIMAL) for solution in ranks]
