"""The k cheapest of n, and permutations: oracles that need no solver."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _checks
from .base import Instance, Oracle
from .result import Row, Status

__all__ = ["TopK"]


class TopK(Oracle):
    """The k of n items of least total cost: solutions are zeros and k ones.

    Args:
        n: number of items.
        k: in [0, n]; may differ between rows through `with_parameters(k=...)`.
        settings: on_failure, time_limit, workers, cache: see `difflayers.oracles.Oracle`.

    Returns:
        Of `solve` with costs `[..., n]`: k ones and zeros, in that shape and dtype. Of equal costs the first are taken.

    Raises:
        TypeError, ValueError: n is not a non-negative integer, k not one in [0, n].

    Cost:
        O(n log n) a row.

    Transforms:
        none by itself; gradients come from a rule, see `difflayers.SolverLayer`.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.oracles.TopK(4, 2).solve(torch.tensor([3.0, 1.0, 2.0, 5.0]))
        tensor([0., 1., 1., 0.])
    """

    name = "difflayers.oracles.TopK"

    def __init__(self, n: int, k: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.n = _checks.integer(self.name, "n", n, minimum=0)
        self.k = _checks.integer(self.name, "k", k, minimum=0, maximum=self.n)

    @property
    def cost_shape(self) -> tuple[int, ...]:
        """(n,)."""
        return (self.n,)

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """k, a number."""
        return {"k": ()}

    def _solve_row(self, cost: np.ndarray, instance: Instance, deadline: float | None) -> Row:
        k = int(instance.get("k", self.k))
        if not 0 <= k <= self.n:
            return Row(None, Status.INFEASIBLE, reason=f"k = {k} of {self.n} items")
        solution = np.zeros(self.n)
        solution[np.argsort(cost, kind="stable")[:k]] = 1.0
        return Row(solution, Status.OPTIMAL)
