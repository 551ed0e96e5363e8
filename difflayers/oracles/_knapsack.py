"""Three ways to solve a 0/1 knapsack in integers: branch and bound, a dynamic program for a batch, CP-SAT."""

from __future__ import annotations

import numpy as np

from ._cp_sat import Outcome, SatModel
from ._ortools import integer_costs, load

TABLE_BYTES = 2**25  # of the dynamic program's decisions at a time


def branch_and_bound(
    solver: object, costs: np.ndarray, sizes: np.ndarray, room: np.ndarray, seconds: float
) -> tuple[np.ndarray, bool]:
    """OR-Tools' branch and bound; takes microseconds on most instances and for ever on some, hence the time limit.

    Args:
        solver: a `KnapsackSolver` of branch and bound. It holds the interpreter's lock while it solves.
        costs: (n,), negative.
        sizes: int64 (constraints, n).
        room: int64 (constraints,).
        seconds: time limit.

    Returns:
        The best solution found, and whether it is proved optimal.
    """
    profits = (-integer_costs(costs)[0]).tolist()
    solver.init(profits, sizes.tolist(), room.tolist())  # pyright: ignore[reportAttributeAccessIssue]
    solver.set_time_limit(seconds)  # pyright: ignore[reportAttributeAccessIssue]
    solver.solve()  # pyright: ignore[reportAttributeAccessIssue]
    taken = [solver.best_solution_contains(i) for i in range(len(costs))]  # pyright: ignore[reportAttributeAccessIssue]
    return np.array(taken, dtype=np.float64), solver.is_solution_optimal()  # pyright: ignore[reportAttributeAccessIssue]


def new_branch_and_bound() -> object:
    """The solver for `branch_and_bound`. (Its sibling for 64 items is faster but ignores time limits.)"""
    module = load("ortools.algorithms.python.knapsack_solver")
    kind = module.SolverType.KNAPSACK_MULTIDIMENSION_BRANCH_AND_BOUND_SOLVER
    return module.KnapsackSolver(kind, "difflayers")


def dynamic_program(costs: np.ndarray, sizes: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Optimal solutions of a batch of knapsacks of the same sizes, in O(B n max(room)).

    Args:
        costs: (B, n).
        sizes: int64 (n,).
        room: int64 (B,), not negative.

    Returns:
        (B, n), zeros and ones.
    """
    batch, n = costs.shape
    width = int(min(room.max(initial=0), sizes.sum())) + 1
    room = np.minimum(room, width - 1)
    solutions = np.zeros((batch, n))
    step = max(1, TABLE_BYTES // (width * max(n, 1)))
    for start in range(0, batch, step):
        part = slice(start, start + step)
        solutions[part] = _table(costs[part], sizes, room[part], width)
    return solutions


def _table(costs: np.ndarray, sizes: np.ndarray, room: np.ndarray, width: int) -> np.ndarray:
    batch, n = costs.shape
    best = np.zeros((batch, width))  # best[:, w]: the least cost of the items so far within room w
    take = np.zeros((n, batch, width), dtype=bool)
    for i, size in enumerate(sizes.tolist()):
        if size < width:
            with_item = best[:, : width - size] + costs[:, i, None]
            np.less(with_item, best[:, size:], out=take[i, :, size:])
            best[:, size:] = np.minimum(best[:, size:], with_item)
    solutions = np.zeros((batch, n))
    rows, left = np.arange(batch), room.copy()
    for i in range(n - 1, -1, -1):
        taken = take[i, rows, left]
        solutions[:, i] = taken
        left -= taken * sizes[i]
    return solutions


def cp_sat(
    costs: np.ndarray, sizes: np.ndarray, room: np.ndarray, deadline: float | None, hint: np.ndarray | None
) -> Outcome:
    """CP-SAT; exact in integers, lets other threads run."""
    model = SatModel()
    variables = model.booleans(len(costs))
    for size, limit in zip(sizes, room.tolist(), strict=True):
        model.model.add(model.weighted_sum(variables, size) <= limit)
    return model.minimise(variables, costs, deadline=deadline, hint=hint)
