"""Tours through all nodes."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from .. import _checks
from ._cp_sat import SatModel
from ._graphs import complete_edges, components
from ._held_karp import shortest_tours
from ._routing import heuristic_seconds, routes
from .base import Instance, Oracle
from .per_thread import PerThread
from .result import Row, Status

__all__ = ["TravelingSalesman"]

METHODS = ("exact", "routing")
FEW_NODES = 12  # for the dynamic program over subsets: 0.3 ms a row, CP-SAT takes ten times longer
ROUTING_SECONDS = 0.1


class TravelingSalesman(Oracle):
    r"""The tour of least total cost through all of n nodes, as the edges it uses.

    $$\min_y c^\top y \quad\text{s.t. } y \text{ the edges of a Hamiltonian cycle of } K_n.$$

    Args:
        n: number of nodes. With two the one edge is used twice (its entry is 2).
        method: "exact", or "routing": guided local search for `time_limit` seconds, 0.1 by default, whose tours are
            FEASIBLE (it holds the interpreter's lock).
        settings: on_failure, time_limit, workers, cache: see `difflayers.oracles.Oracle`. With "exact" a row whose time
            is up is FEASIBLE: it has the best tour found.

    Returns:
        Of `solve` with costs `[..., n (n - 1) / 2]` of the edges 01, 02, ..., 12, ...: 1 for the edges of the tour,
        else 0, in that shape and dtype.

    Raises:
        ValueError: n is negative, an unknown method.

    Cost:
        Up to 12 nodes a dynamic program for the whole batch, 0.3 ms a row; beyond, one search with CP-SAT a row: 20
        nodes take about 20 ms, 50 about a second.

    Transforms:
        none by itself; gradients come from a rule, see `difflayers.SolverLayer`.

    Example:
        >>> import torch, difflayers as dl
        >>> tour = dl.oracles.TravelingSalesman(4)  # edges 01, 02, 03, 12, 13, 23
        >>> tour.solve(torch.tensor([1.0, 5.0, 1.0, 1.0, 5.0, 1.0]))
        tensor([1., 0., 1., 1., 0., 1.])
    """

    name = "difflayers.oracles.TravelingSalesman"

    def __init__(self, n: int, *, method: str = "exact", **settings: Any) -> None:
        super().__init__(**settings)
        self.n = _checks.integer(self.name, "n", n, minimum=0)
        self.method = _checks.choice(self.name, "method", method, METHODS)
        self.edges = complete_edges(self.n)
        self.exact = method == "exact" or self.n <= 3
        self.releases_gil = method == "exact"
        self._models = PerThread()

    @property
    def cost_shape(self) -> tuple[int, ...]:
        """(n (n - 1) / 2,): the edges in the order of torch.triu_indices(n, n, 1)."""
        return (len(self.edges),)

    def _solve_rows(self, costs: np.ndarray, instances: list[Instance], time_limit: float | None) -> list[Row]:
        if self.n <= 3:
            return [Row(np.full(len(self.edges), 2.0 if self.n == 2 else 1.0), Status.OPTIMAL) for _ in costs]
        if self.method == "exact" and self.n <= FEW_NODES:
            tours = shortest_tours(np.stack([self._matrix(cost) for cost in costs])) if len(costs) else []
            return [Row(self._edges_of(tour), Status.OPTIMAL) for tour in tours]
        return super()._solve_rows(costs, instances, time_limit)

    def _matrix(self, cost: np.ndarray) -> np.ndarray:
        matrix = np.zeros((self.n, self.n))
        first, second = self.edges.T
        matrix[first, second] = matrix[second, first] = cost
        return matrix

    def _edges_of(self, tour: np.ndarray) -> np.ndarray:
        first, second = np.minimum(tour, np.roll(tour, -1)), np.maximum(tour, np.roll(tour, -1))
        solution = np.zeros(len(self.edges))
        # pairs (i, j) before row i of the triangle: i n - i (i + 1) / 2
        solution[first * self.n - first * (first + 1) // 2 + second - first - 1] = 1.0
        return solution

    def _build(self) -> tuple[SatModel, list[Any]]:
        sat = SatModel()
        arcs = sat.booleans(2 * len(self.edges))  # both directions of each edge
        ends = np.concatenate([self.edges, self.edges[:, ::-1]], axis=1).reshape(-1, 2).tolist()
        sat.model.add_circuit([(tail, head, arc) for (tail, head), arc in zip(ends, arcs, strict=True)])
        return sat, arcs

    def _solve_row(self, cost: np.ndarray, instance: Instance, deadline: float | None) -> Row:
        if self.method == "routing":
            seconds = ROUTING_SECONDS if deadline is None else max(0.001, deadline - time.monotonic())
            solution = self._heuristic(cost, seconds)
            return Row(solution, Status.TIMEOUT if solution is None else Status.FEASIBLE)
        start = None if deadline is None else self._heuristic(cost, heuristic_seconds(deadline, self.n))
        sat, arcs = self._models.get("model", self._build)
        found = sat.minimise(arcs, np.repeat(cost, 2), deadline=deadline)
        if found.status == Status.FAILED:
            return Row(None, found.status, reason=found.reason)
        solution = None if found.values is None else found.values.reshape(-1, 2).sum(axis=1)
        if start is not None and (solution is None or cost @ start < cost @ solution):
            solution = start
        if solution is None:
            return Row(None, Status.TIMEOUT)
        return Row(solution, Status.OPTIMAL if found.status == Status.OPTIMAL else Status.FEASIBLE, found.bound)

    def _heuristic(self, cost: np.ndarray, seconds: float) -> np.ndarray | None:
        found = routes(self._matrix(cost), seconds)
        return None if not found else self._edges_of(np.array([0, *found[0]]))

    def _is_feasible(self, solution: np.ndarray, instance: Instance) -> bool:
        if not np.isin(solution, (0.0, 1.0)).all():
            return False
        first, second = self.edges[solution == 1].T
        degrees = np.bincount(first, minlength=self.n) + np.bincount(second, minlength=self.n)
        return bool((degrees == 2).all()) and len(components(first, second, self.n)) == 1
