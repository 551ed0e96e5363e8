"""The most profitable items that fit."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np

from .. import _checks
from . import _knapsack
from ._ortools import array, integer_sizes
from .base import Instance, Oracle
from .per_thread import PerThread
from .result import Row, Status

__all__ = ["Knapsack"]

METHODS = ("auto", "dynamic_program", "cp_sat")
BRANCH_SECONDS = 0.005  # what branch and bound does not solve by then, it often does not solve at all
CELL_SECONDS = 3e-9  # of the dynamic program, one for each item and unit of capacity
FEW_CELLS = 2**14  # up to which the dynamic program takes no longer than branch and bound takes on its easy instances
MAX_CELLS = 2**22  # about ten milliseconds a row; CP-SAT takes longer


class Items(NamedTuple):
    """Items that are taken or not.

    Attributes:
        of: which item of the problem each one is.
        copies: how many copies of it.
        sizes: int64 (constraints, items), of all copies together.
    """

    of: np.ndarray
    copies: np.ndarray
    sizes: np.ndarray


class Knapsack(Oracle):
    r"""The items, or counts of items, of least total cost that fit; profits are passed as negative costs.

    $$\min_y c^\top y \quad\text{s.t.}\quad W y \le C,\; 0 \le y \le u,\; y \text{ integer}.$$

    Items whose cost is not negative are never taken. Weights that are floats are read as the decimals they print as,
    so that 0.1 and 0.2 fit together in 0.3; where they have too many digits for that, they are rounded up and
    capacities down at 2^-57 of the sum of the weights: every solution fits.

    Args:
        weights: `[n]` or `[constraints, n]`, not negative, any dtype of integers or floats.
        capacity: `[]` or `[constraints]`, not negative.
        upper: how often an item may be taken: an integer, or integers `[n]`.
        method: "auto": with one constraint and a small n times capacity, a dynamic program for the whole batch at once;
            else branch and bound for some milliseconds, and what that leaves by the dynamic program where n times
            capacity is at most 2^22, by CP-SAT where it is not. "dynamic_program": that for all rows. "cp_sat": that
            for all rows; it leaves the interpreter free for other threads.
        settings: on_failure, time_limit, workers, cache: see `difflayers.oracles.Oracle`. A row whose time is up is
            FEASIBLE: it has the best selection found, in the worst case the empty one.

    Returns:
        Of `solve` with costs `[..., n]`: how often each item is taken, in that shape and dtype.

    Raises:
        TypeError: weights, capacity or upper are not numbers.
        ValueError: negative or non-finite entries, shapes that do not fit, "dynamic_program" with several constraints
            or a large capacity.

    Cost:
        Around 30 to 50 microseconds a row of 50 items and one constraint. Branch and bound holds the interpreter's lock
        for at most 5 ms at a time.

    Transforms:
        none by itself; gradients come from a rule, see `difflayers.SolverLayer`.

    Example:
        >>> import torch, difflayers as dl
        >>> pack = dl.oracles.Knapsack([3, 4, 2], 6)
        >>> pack.solve(torch.tensor([[-5.0, -7.0, -3.0], [-5.0, -2.0, 1.0]]))
        tensor([[0., 1., 1.],
                [1., 0., 0.]])
        >>> pack.with_parameters(capacity=torch.tensor([3, 9])).solve(torch.tensor([-5.0, -7.0, -3.0]).expand(2, 3))
        tensor([[1., 0., 0.],
                [1., 1., 1.]])
    """

    name = "difflayers.oracles.Knapsack"

    def __init__(self, weights: Any, capacity: Any, *, upper: Any = 1, method: str = "auto", **settings: Any) -> None:
        super().__init__(**settings)
        self.weights = array(self.name, "weights", weights)
        if self.weights.ndim not in (1, 2):
            raise ValueError(
                f"{self.name}: argument 'weights' must have shape [n] or [constraints, n], got {self.weights.shape}"
            )
        self.capacity = array(self.name, "capacity", capacity)
        if self.capacity.shape != self.weights.shape[:-1]:
            raise ValueError(
                f"{self.name}: argument 'capacity' must have shape {self.weights.shape[:-1]} for weights of shape "
                f"{self.weights.shape}, got {self.capacity.shape}"
            )
        for what, value in (("weights", self.weights), ("capacity", self.capacity)):
            if (value < 0).any():
                raise ValueError(f"{self.name}: argument '{what}' must not be negative, got {value.min():g}")
        self.upper = array(self.name, "upper", upper)
        if self.upper.dtype.kind == "f" or self.upper.shape not in ((), (self.n,)) or (self.upper < 0).any():
            raise ValueError(
                f"{self.name}: argument 'upper' must be an integer or integers of shape [{self.n}], none negative, got "
                f"{upper!r}"
            )
        self.method = _checks.choice(self.name, "method", method, METHODS)
        self.releases_gil = self.method == "cp_sat"
        self._models = PerThread()
        self._shared = self._integers({})
        self._shared_items = self._split(*self._shared)
        if self.method == "dynamic_program":
            self._check_table(*self._shared)

    @property
    def n(self) -> int:
        """The number of items."""
        return self.weights.shape[-1]

    @property
    def cost_shape(self) -> tuple[int, ...]:
        """(n,)."""
        return (self.n,)

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """weights and capacity, in the shapes they were given."""
        return {"weights": self.weights.shape, "capacity": self.capacity.shape}

    def _check_parameters(self) -> None:
        for what, value in self.parameters.items():
            if value.dtype.kind not in "iuf":
                raise TypeError(f"{self.name}: parameter {what!r} must hold numbers, got dtype {value.dtype}")
        if (self.parameters.get("weights", np.zeros(1)) < 0).any():
            raise ValueError(f"{self.name}: parameter 'weights' must not be negative")

    def _integers(self, instance: Instance) -> tuple[np.ndarray, np.ndarray]:
        """Weights (constraints, n) and capacities (constraints,) of a row, as int64."""
        sizes = np.atleast_2d(instance.get("weights", self.weights))
        room = np.atleast_1d(instance.get("capacity", self.capacity))
        if sizes.dtype.kind == "f" or room.dtype.kind == "f" or float(sizes.sum(dtype=float)) > 2**60:
            return integer_sizes(sizes, room)
        return sizes.astype(np.int64), np.minimum(room, 2**61).astype(np.int64)

    def _check_table(self, sizes: np.ndarray, room: np.ndarray) -> None:
        cells = self.n * min(int(room.max(initial=0)), int(sizes.sum()))
        if len(sizes) != 1 or cells > MAX_CELLS:
            raise ValueError(
                f"{self.name}: method 'dynamic_program' takes one constraint and n times capacity (in units of the "
                f"weights' common denominator) up to {MAX_CELLS}, got {len(sizes)} constraints and {cells}; use 'auto'"
            )

    def _solve_rows(self, costs: np.ndarray, instances: list[Instance], time_limit: float | None) -> list[Row]:
        rows: list[Row | None] = [None] * len(costs)
        tables: dict[bytes, tuple[Items, list[int], list[np.ndarray]]] = {}
        for i, (cost, instance) in enumerate(zip(costs, instances, strict=True)):
            try:
                deadline = None if time_limit is None else time.monotonic() + time_limit
                sizes, room = self._integers(instance) if instance else self._shared
                items = self._split(sizes, room) if instance else self._shared_items
                rows[i] = self._solve_one(cost, items, room, deadline)
                if rows[i] is None:
                    key = b"|".join(part.tobytes() for part in items) if instance else b""
                    group = tables.setdefault(key, (items, [], []))
                    group[1].append(i)
                    group[2].append(room)
            except ImportError:  # a solver that is not installed is no row's fault
                raise
            except Exception as error:  # one bad row must not lose the others
                rows[i] = Row(None, Status.FAILED, reason=f"{type(error).__name__}: {error}")
        for items, indices, rooms in tables.values():  # rows of the same weights go through one table
            chosen = _knapsack.dynamic_program(
                costs[indices][:, items.of] * items.copies, items.sizes[0], np.concatenate(rooms)
            )
            for i, room, taken in zip(indices, rooms, chosen, strict=True):
                rows[i] = self._row(items, room, taken, Status.OPTIMAL)
        return [row for row in rows if row is not None]

    def _split(self, sizes: np.ndarray, room: np.ndarray) -> Items:
        """Items that are taken or not: one with the bound 5 becomes items of 1, 2 and 2."""
        counts = np.broadcast_to(self.upper, (self.n,)).astype(np.int64)
        if counts.max(initial=0) <= 1:
            return Items(np.arange(self.n), counts, sizes * counts)
        fitting = np.where(sizes > 0, np.maximum(room, 0)[:, None] // np.maximum(sizes, 1), counts)
        counts = np.minimum(counts, fitting.min(axis=0, initial=np.iinfo(np.int64).max))
        parts = [_parts(count) for count in counts.tolist()]
        of = np.repeat(np.arange(self.n), [len(part) for part in parts])
        copies = np.array([number for part in parts for number in part], dtype=np.int64)
        return Items(of, copies, sizes[:, of] * copies)

    def _solve_one(self, cost: np.ndarray, items: Items, room: np.ndarray, deadline: float | None) -> Row | None:
        """The row, or None where the dynamic program is to do it."""
        if (room < 0).any():
            return Row(None, Status.INFEASIBLE, reason="the capacity is negative")
        cells = items.sizes.shape[1] * int(min(int(room[0]), int(items.sizes[0].sum()))) if len(room) == 1 else None
        if self.method == "dynamic_program":
            self._check_table(items.sizes, room)
            return None
        if self.method == "auto" and cells is not None and cells <= FEW_CELLS:
            return None
        costs = cost[items.of] * items.copies
        worth = np.flatnonzero((costs < 0) & (items.sizes <= room[:, None]).all(axis=0))
        sizes, costs = items.sizes[:, worth], costs[worth]
        chosen = np.zeros(len(items.of))
        if (sizes.sum(axis=1) <= room).all():
            chosen[worth] = 1.0
            return self._row(items, room, chosen, Status.OPTIMAL)
        hint = None
        if self.method == "auto":
            tabled = cells is not None and cells <= MAX_CELLS
            seconds = BRANCH_SECONDS / 10 + cells * CELL_SECONDS if tabled and cells is not None else BRANCH_SECONDS
            if deadline is not None:
                seconds = min(seconds, deadline - time.monotonic())
            hint = np.zeros(len(worth))
            if seconds > 0:
                solver = self._models.get("branch_and_bound", _knapsack.new_branch_and_bound)
                hint, done = _knapsack.branch_and_bound(solver, costs, sizes, room, seconds)
                if done:
                    chosen[worth] = hint
                    return self._row(items, room, chosen, Status.OPTIMAL)
                if tabled:
                    return None
        found = _knapsack.cp_sat(costs, sizes, room, deadline, hint)
        best = found.values if found.values is not None else np.zeros(len(worth))
        if hint is not None and costs @ hint < costs @ best:
            best = hint
        chosen[worth] = best
        bound = max(found.bound, float(costs.sum()))  # every item with a profit: no selection is cheaper
        status = Status.OPTIMAL if found.status == Status.OPTIMAL else Status.FEASIBLE
        return self._row(items, room, chosen, status, bound)

    def _row(self, items: Items, room: np.ndarray, chosen: np.ndarray, status: Status, bound: float = -np.inf) -> Row:
        """The row of a selection of the split items, checked."""
        if (items.sizes @ np.rint(chosen).astype(np.int64) > room).any():
            return Row(None, Status.FAILED, reason="the solver returned a selection that does not fit")
        counts = np.bincount(items.of, weights=chosen * items.copies, minlength=self.n)
        return Row(counts, status, bound)


def _parts(count: int) -> list[int]:
    """1, 2, 4, ... and a rest: their sums are 0..count."""
    parts, power = [], 1
    while count > 0:
        part = min(power, count)
        parts.append(part)
        count -= part
        power *= 2
    return parts
