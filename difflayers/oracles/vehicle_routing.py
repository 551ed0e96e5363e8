"""Routes of vehicles of limited capacity."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from .. import _checks
from ._cp_sat import SatModel
from ._graphs import complete_edges
from ._ortools import array, integer_sizes
from ._routing import heuristic_seconds, routes
from .base import Instance, Oracle
from .per_thread import PerThread
from .result import Row, Status

__all__ = ["VehicleRouting"]

METHODS = ("exact", "routing")
ROUTING_SECONDS = 0.1


class VehicleRouting(Oracle):
    r"""Routes from a depot through all customers, none with more demand than a vehicle holds, at the least cost.

    $$\min_y c^\top y \quad\text{s.t. } y \text{ the edges of at most } K \text{ cycles through node } 0
    \text{ that visit each other node once, with demands of at most } C \text{ each}.$$

    Args:
        n: number of nodes; node 0 is the depot.
        vehicles: how many there are at most.
        demands: `[n - 1]` of nodes 1 to n - 1, not negative. Floats are read as the decimals they print as, as in
            `Knapsack`.
        capacity: of each vehicle, not negative.
        method: "exact", or "routing": guided local search for `time_limit` seconds, 0.1 by default, whose routes are
            FEASIBLE (it holds the interpreter's lock).
        settings: on_failure, time_limit, workers, cache: see `difflayers.oracles.Oracle`. With "exact" a row whose time
            is up is FEASIBLE where routes were found.

    Returns:
        Of a call: how often each edge is used; 2 for the edge to a customer who has a route alone.

    Raises:
        TypeError: demands or capacity are not numbers.
        ValueError: negative or non-finite entries, shapes that do not fit.

    Cost:
        One search with CP-SAT a row: ten nodes take a tenth of a second, thirteen a second, more nodes much more; set a
        time_limit there.

    Transforms:
        none by itself; gradients come from a rule, see `difflayers.SolverLayer`.

    Example:
        >>> import torch, difflayers as dl
        >>> fleet = dl.oracles.VehicleRouting(3, 2, demands=[1, 1], capacity=1)  # edges 01, 02, 12
        >>> fleet.solve(torch.tensor([1.0, 1.0, 0.1]))
        tensor([2., 2., 0.])
        >>> fleet.with_parameters(capacity=torch.tensor(2)).solve(torch.tensor([1.0, 1.0, 0.1]))
        tensor([1., 1., 1.])
    """

    name = "difflayers.oracles.VehicleRouting"

    def __init__(
        self, n: int, vehicles: int, demands: Any, capacity: Any, *, method: str = "exact", **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.n = _checks.integer(self.name, "n", n, minimum=1)
        self.vehicles = _checks.integer(self.name, "vehicles", vehicles, minimum=0)
        self.demands = array(self.name, "demands", demands)
        self.capacity = array(self.name, "capacity", capacity)
        if self.demands.shape != (self.n - 1,) or self.capacity.shape != ():
            raise ValueError(
                f"{self.name}: argument 'demands' must have shape [{self.n - 1}], one for each node but the depot, and "
                f"'capacity' be one number, got shapes {self.demands.shape} and {self.capacity.shape}"
            )
        for what, value in (("demands", self.demands), ("capacity", self.capacity)):
            if (value < 0).any():
                raise ValueError(f"{self.name}: argument '{what}' must not be negative, got {value.min():g}")
        self.method = _checks.choice(self.name, "method", method, METHODS)
        self.exact = self.releases_gil = method == "exact"
        self.edges = complete_edges(self.n)
        self._models = PerThread()
        self._shared = self._integers({})

    @property
    def cost_shape(self) -> tuple[int, ...]:
        """(n (n - 1) / 2,): the edges in the order of torch.triu_indices(n, n, 1)."""
        return (len(self.edges),)

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """demands (n - 1,) and capacity ()."""
        return {"demands": self.demands.shape, "capacity": ()}

    def _check_parameters(self) -> None:
        for what, value in self.parameters.items():
            if value.dtype.kind not in "iuf":
                raise TypeError(f"{self.name}: parameter {what!r} must hold numbers, got dtype {value.dtype}")
        if (self.parameters.get("demands", np.zeros(1)) < 0).any():
            raise ValueError(f"{self.name}: parameter 'demands' must not be negative")

    def _integers(self, instance: Instance) -> tuple[np.ndarray, int]:
        """Demands of all nodes, 0 for the depot, and the capacity."""
        demands = np.asarray(instance.get("demands", self.demands))[None]
        sizes, room = integer_sizes(demands, np.asarray(instance.get("capacity", self.capacity)).reshape(1))
        return np.concatenate([[0], sizes[0]]), int(room[0])

    def _build(self, demands: np.ndarray, capacity: int) -> tuple[SatModel, list[Any]]:
        sat = SatModel()
        model = sat.model
        arcs = sat.booleans(2 * len(self.edges))  # both directions of each edge
        ends = np.concatenate([self.edges, self.edges[:, ::-1]], axis=1).reshape(-1, 2).tolist()
        model.add_multiple_circuit([(tail, head, arc) for (tail, head), arc in zip(ends, arcs, strict=True)])
        model.add(sum(arc for (tail, _), arc in zip(ends, arcs, strict=True) if tail == 0) <= self.vehicles)
        # the load on leaving a node
        loads = [model.new_int_var(int(demand), capacity, "") for demand in demands]
        for (tail, head), arc in zip(ends, arcs, strict=True):
            if tail and head:
                if demands[tail] + demands[head] > capacity:
                    model.add(arc == 0)
                else:
                    model.add(loads[head] >= loads[tail] + int(demands[head])).only_enforce_if(arc)
        return sat, arcs

    def _solve_row(self, cost: np.ndarray, instance: Instance, deadline: float | None) -> Row:
        demands, capacity = self._integers(instance) if instance else self._shared
        if self.n == 1:
            return Row(np.zeros(0), Status.OPTIMAL)
        if demands.max() > capacity or demands.sum() > self.vehicles * capacity or self.vehicles == 0:
            return Row(None, Status.INFEASIBLE, reason=f"{self.vehicles} vehicles do not hold the demands")
        start = None
        if self.method == "routing":
            seconds = ROUTING_SECONDS if deadline is None else max(0.001, deadline - time.monotonic())
            start = self._heuristic(cost, demands, capacity, seconds)
            return Row(start, Status.TIMEOUT if start is None else Status.FEASIBLE)
        if deadline is not None:
            start = self._heuristic(cost, demands, capacity, heuristic_seconds(deadline, self.n))
        key = (demands.tobytes(), capacity)
        built = self._models.get("built", dict)
        if key not in built:
            built.clear()  # one at a time: instances are many
            built[key] = self._build(demands, capacity)
        sat, arcs = built[key]
        found = sat.minimise(arcs, np.repeat(cost, 2), deadline=deadline)
        if found.status in (Status.FAILED, Status.INFEASIBLE):
            return Row(None, found.status, reason=found.reason)
        solution = None if found.values is None else found.values.reshape(-1, 2).sum(axis=1)
        if start is not None and (solution is None or cost @ start < cost @ solution):
            solution = start
        if solution is None:
            return Row(None, Status.TIMEOUT)
        return Row(solution, Status.OPTIMAL if found.status == Status.OPTIMAL else Status.FEASIBLE, found.bound)

    def _heuristic(self, cost: np.ndarray, demands: np.ndarray, capacity: int, seconds: float) -> np.ndarray | None:
        matrix = np.zeros((self.n, self.n))
        first, second = self.edges.T
        matrix[first, second] = matrix[second, first] = cost
        found = routes(matrix, seconds, vehicles=self.vehicles, demands=demands, capacity=capacity)
        if found is None:
            return None
        used = np.zeros((self.n, self.n))
        for route in found:
            for tail, head in zip([0, *route], [*route, 0], strict=True):
                used[min(tail, head), max(tail, head)] += 1.0
        return used[first, second]

    def _is_feasible(self, solution: np.ndarray, instance: Instance) -> bool:
        demands, capacity = self._integers(instance) if instance else self._shared
        neighbours: list[list[int]] = [[] for _ in range(self.n)]
        for (u, v), uses in zip(self.edges.tolist(), solution.tolist(), strict=True):
            if uses not in (0.0, 1.0, 2.0) or (uses == 2.0 and u != 0):
                return False
            neighbours[u] += [v] * int(uses)
            neighbours[v] += [u] * int(uses)
        if any(len(neighbours[node]) != 2 for node in range(1, self.n)) or len(neighbours[0]) > 2 * self.vehicles:
            return False
        seen: set[int] = set()
        for start in neighbours[0]:
            if start in seen:
                continue
            load, before, node = 0, 0, start
            while node != 0:
                seen.add(node)
                load += int(demands[node])
                onward = list(neighbours[node])
                onward.remove(before)
                before, node = node, onward[0]
            if load > capacity:
                return False
        return len(seen) == self.n - 1
