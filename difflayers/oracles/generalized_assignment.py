"""Items into bins of limited capacity."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._cp_sat import SatModel
from ._mip import MixedIntegerModel
from ._ortools import array, integer_sizes
from .base import Instance, Oracle
from .per_thread import PerThread
from .result import Row, Status

__all__ = ["GeneralizedAssignment"]


class GeneralizedAssignment(Oracle):
    r"""Every item in exactly one bin, none overfull, at the least total cost.

    $$\min_y \sum_{ij} c_{ij} y_{ij} \quad\text{s.t.}\quad \sum_j y_{ij} = 1,\; \sum_i w_{ij} y_{ij} \le C_j,\;
    y \in \{0, 1\}^{items \times bins}.$$

    Args:
        weights: `[items]`, or `[items, bins]` where they depend on the bin; not negative. Floats are read as the
            decimals they print as, as in `Knapsack`.
        capacities: `[bins]`, not negative.
        settings: on_failure, time_limit, workers, cache: see `difflayers.oracles.Oracle`. A row whose time is up before
            anything was found gets a greedy assignment, if one fits.

    Returns:
        Of `solve` with costs `[..., items, bins]`: 1 where an item lies in a bin, else 0, in that shape and dtype.

    Raises:
        TypeError: weights or capacities are not numbers.
        ValueError: negative or non-finite entries, shapes that do not fit.

    Cost:
        One mixed-integer program a row in SCIP, whose model every thread keeps: 50 items in 4 bins take about 8 ms.
        Where its tolerance would let a bin be overfull, CP-SAT solves the row again in integers.

    Transforms:
        none by itself; gradients come from a rule, see `difflayers.SolverLayer`.

    Example:
        >>> import torch, difflayers as dl
        >>> bins = dl.oracles.GeneralizedAssignment([2, 2, 1], [3, 3])
        >>> bins.solve(torch.tensor([[1.0, 9.0], [1.0, 5.0], [1.0, 9.0]]))
        tensor([[1., 0.],
                [0., 1.],
                [1., 0.]])
    """

    name = "difflayers.oracles.GeneralizedAssignment"
    releases_gil = True

    def __init__(self, weights: Any, capacities: Any, **settings: Any) -> None:
        super().__init__(**settings)
        self.weights = array(self.name, "weights", weights)
        self.capacities = array(self.name, "capacities", capacities)
        if self.capacities.ndim != 1 or self.weights.shape[1:] not in ((), self.capacities.shape):
            raise ValueError(
                f"{self.name}: argument 'weights' must have shape [items] or [items, bins] and 'capacities' [bins], "
                f"got {self.weights.shape} and {self.capacities.shape}"
            )
        if self.weights.ndim == 0:
            raise ValueError(f"{self.name}: argument 'weights' must have shape [items] or [items, bins], got ()")
        for what, value in (("weights", self.weights), ("capacities", self.capacities)):
            if (value < 0).any():
                raise ValueError(f"{self.name}: argument '{what}' must not be negative, got {value.min():g}")
        self._models = PerThread()
        self._shared = self._integers({})

    @property
    def cost_shape(self) -> tuple[int, ...]:
        """(items, bins)."""
        return len(self.weights), len(self.capacities)

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """weights and capacities, in the shapes they were given."""
        return {"weights": self.weights.shape, "capacities": self.capacities.shape}

    def _check_parameters(self) -> None:
        for what, value in self.parameters.items():
            if value.dtype.kind not in "iuf":
                raise TypeError(f"{self.name}: parameter {what!r} must hold numbers, got dtype {value.dtype}")
        if (self.parameters.get("weights", np.zeros(1)) < 0).any():
            raise ValueError(f"{self.name}: parameter 'weights' must not be negative")

    def _integers(self, instance: Instance) -> tuple[np.ndarray, np.ndarray]:
        """Weights (bins, items) and capacities (bins,), as int64."""
        weights = instance.get("weights", self.weights)
        capacities = instance.get("capacities", self.capacities)
        weights = weights if weights.ndim == 2 else weights[:, None]
        return integer_sizes(np.broadcast_to(weights, self.cost_shape).T, capacities)

    def _build(self) -> MixedIntegerModel:
        sizes, room = self._shared
        low, high = self._sides(room)
        count = sizes.size
        zeros, ones = np.zeros(count), np.ones(count)
        return MixedIntegerModel("SCIP", self._matrix(sizes), low, high, zeros, ones, ones.astype(bool))

    def _matrix(self, sizes: np.ndarray) -> np.ndarray:
        items, bins = self.cost_shape
        each = np.kron(np.eye(items), np.ones((1, bins)))
        full = np.zeros((bins, items, bins))
        full[np.arange(bins), :, np.arange(bins)] = sizes
        return np.concatenate([each, full.reshape(bins, -1)])

    def _sides(self, room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        items, bins = self.cost_shape
        ones = np.ones(items)
        return np.concatenate([ones, np.full(bins, -np.inf)]), np.concatenate([ones, room.astype(np.float64)])

    def _solve_row(self, cost: np.ndarray, instance: Instance, deadline: float | None) -> Row:
        items, bins = self.cost_shape
        sizes, room = self._integers(instance) if instance else self._shared
        if items == 0:
            return Row(np.zeros(self.cost_shape), Status.OPTIMAL)
        if bins == 0 or (room < 0).any():
            return Row(None, Status.INFEASIBLE, reason="no bins" if bins == 0 else "a capacity is negative")
        model = self._models.get("model", self._build)
        model.set_rows(self._shared_matrix() if "weights" not in instance else self._matrix(sizes), *self._sides(room))
        found = model.minimise(cost.ravel(), deadline)
        solution = None if found.values is None else np.rint(found.values).reshape(self.cost_shape) + 0.0
        if found.status == Status.FAILED or (solution is not None and not self._fits(solution, sizes, room)):
            sat = SatModel()
            chosen = sat.booleans(items * bins)
            for i in range(items):
                sat.model.add_exactly_one(chosen[i * bins : (i + 1) * bins])
            for j in range(bins):
                sat.model.add(sat.weighted_sum(chosen[j::bins], sizes[j]) <= int(room[j]))
            found = sat.minimise(chosen, cost.ravel(), deadline=deadline)
            solution = None if found.values is None else found.values.reshape(self.cost_shape)
        if solution is None and found.status == Status.TIMEOUT:
            solution = self._greedy(cost, sizes, room)
            return Row(solution, found.status if solution is None else Status.FEASIBLE)
        if solution is not None and not self._fits(solution, sizes, room):
            return Row(None, Status.FAILED, reason="the solver returned an infeasible solution")
        return Row(solution, found.status, found.bound, found.reason)

    def _greedy(self, cost: np.ndarray, sizes: np.ndarray, room: np.ndarray) -> np.ndarray | None:
        """The largest item first, each to the cheapest bin that has room; else to where it leaves most."""
        for by_cost in (True, False):
            left, solution = room.copy(), np.zeros(self.cost_shape)
            for item in np.argsort(-sizes.min(axis=0), kind="stable"):
                fits = sizes[:, item] <= left
                if not fits.any():
                    break
                price = cost[item] if by_cost else sizes[:, item] / np.maximum(left, 1)
                chosen = int(np.where(fits, price, np.inf).argmin())
                solution[item, chosen] = 1.0
                left[chosen] -= sizes[chosen, item]
            else:
                return solution
        return None

    def _shared_matrix(self) -> np.ndarray:
        return self._models.get("matrix", lambda: self._matrix(self._shared[0]))

    def _fits(self, solution: np.ndarray, sizes: np.ndarray, room: np.ndarray) -> bool:
        taken = solution.astype(np.int64)
        loads = (sizes.T * taken).sum(axis=0)
        return bool((taken.sum(axis=1) == 1).all() and np.isin(taken, (0, 1)).all() and (loads <= room).all())
